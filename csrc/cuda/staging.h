// What the blocks of all kernels share: 16-byte groups, places in planes, runs of memory staged in shared memory.
#pragma once

#include <cstring>
#include <type_traits>

#include "element.h"
#include "grid_index.h"
#include "plan.h"

namespace equikern {
namespace cuda {

template <class E>
constexpr int kLanes = 16 / sizeof(E);

template <class E>
struct alignas(16) Vector {
  E lane[kLanes<E>];
};

struct alignas(16) Bytes16 {
  uint64_t low, high;
};

template <class E>
EQK_HD E zero() {
  E value;
  memset(&value, 0, sizeof(value));
  return value;
}

// One 16-byte load: left to itself, nvcc splits some into two.
template <class Group>
EQK_HD Group load_group(const Group* from) {
#if defined(__CUDA_ARCH__)
  if (sizeof(Group) == 16) {
    uint4 words;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(__cvta_generic_to_global(from)));
    Group group;
    memcpy(&group, &words, sizeof(words));
    return group;
  }
#endif
  return *from;
}

// One 16-byte store, likewise.
template <class Group>
EQK_HD void store_group(Group* to, const Group& group) {
#if defined(__CUDA_ARCH__)
  if (sizeof(Group) == 16) {
    uint4 words;
    memcpy(&words, &group, sizeof(words));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
                 "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
    return;
  }
#endif
  *to = group;
}

// One 16-byte load from shared memory: nvcc knows no alignment of what a reference is copied from.
EQK_HD Bytes16 load_staged(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 words = *static_cast<const uint4*>(from);
  Bytes16 bytes;
  memcpy(&bytes, &words, sizeof(words));
  return bytes;
#else
  return *static_cast<const Bytes16*>(from);
#endif
}

// 16 bytes from global to shared memory, past the registers where the GPU can; await_copies before the barrier.
template <class E>
EQK_HD void copy_vector(const E* from, E* shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
#else
  *reinterpret_cast<Vector<E>*>(shared) = *reinterpret_cast<const Vector<E>*>(from);
#endif
}

EQK_HD void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// n / d for n >= 0 and d > 0: 64-bit divisions are slow, and mostly both are small.
EQK_HD int64_t quotient(int64_t n, int64_t d) {
  if (((n | d) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
  return n / d;
}

// The quotient of n - 1, for n > 0.
EQK_HD uint32_t divide_before(uint32_t n, const FastDivider& by) {
#if defined(__CUDA_ARCH__)
  return __umulhi(n, by.multiplier);
#else
  return static_cast<uint32_t>(uint64_t{n} * by.multiplier >> 32);
#endif
}

EQK_HD uint32_t divide(uint32_t n, const FastDivider& by) { return divide_before(n + 1, by); }

struct Offsets {
  int64_t x, out, y;
};

// Where a plane starts in every tensor.
EQK_HD Offsets plane_offsets(const Plan& p, int64_t plane) {
  Offsets at{0, 0, 0};
  for (int d = p.n_lead - 1; d >= 0; --d) {
    const int64_t rest = quotient(plane, p.lead[d]), k = plane - rest * p.lead[d];
    at.x += k * p.x.lead[d];
    at.out += k * p.out.lead[d];
    at.y += k * p.y.lead[d];
    plane = rest;
  }
  return at;
}

// λ of a view for the planes of one column.
template <class A>
EQK_HD A weight_of(const Plan& p, int view, int64_t plane) {
  return static_cast<const A*>(p.weights)[view * p.weight_columns + quotient(plane, p.planes_per_weight)];
}

template <class A>
EQK_HD A sum_of_weights(const Plan& p, int64_t plane) {
  A sum = 0;
  for (int g = 0; g < p.n_views; ++g) sum += weight_of<A>(p, g, plane);
  return sum;
}

// A block of runs: some whole planes of one column, gapless in memory.
struct Planes {
  int64_t first;
  int count, elements;
};

EQK_HD Planes planes_of(const Plan& p, int64_t block) {
  const int64_t column = quotient(block, p.blocks_per_column), part = block - column * p.blocks_per_column;
  const int64_t before = part * p.planes_per_block, left = p.planes_per_column - before;
  const int count = static_cast<int>(left < p.planes_per_block ? left : p.planes_per_block);
  return {column * p.planes_per_column + before, count, count * static_cast<int>(p.H * p.W)};
}

// How far, in elements, a run starts after a 16-byte boundary. A staged run starts as far from one, so that vectors
// stay vectors on the way through shared memory.
template <class E>
EQK_HD int misalignment(const E* run) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(run) % 16 / sizeof(E));
}

// Byte of shared memory where a run of the views is staged; one tensor for all views is one run.
template <class E>
EQK_HD int staged_run(const Plan& p, const E* run, int number) {
  return p.staged_start + number * p.run_bytes + misalignment(run) * static_cast<int>(sizeof(E));
}

// Bytes between a vector's place in a staged run and its place in memory: those between the rows before it.
template <class E>
EQK_HD int bytes_between(const Plan& p, int vector) {
  const int gap = p.row_bytes - static_cast<int>(p.W * sizeof(E));
  return gap ? static_cast<int>(divide(vector, p.by_row)) * gap : 0;
}

// Copies runs to shared memory. A warp takes a run, or where there are few of them a part of one: so it finds once where
// that is, and neighbouring lanes copy neighbouring vectors. The elements before the first and behind the last vector,
// fewer than kLanes each, are copied one by one. Only with kGaps there may be bytes between staged rows.
template <class E, bool kGaps = false>
EQK_HD void stage_runs(const Plan& p, const E* x, int runs, int elements, int thread, unsigned char* shared) {
  const int parts = p.by_parts.divisor, lane = thread % kWarp;
  for (int unit = thread / kWarp; unit < runs * parts; unit += kThreads / kWarp) {
    const int number = static_cast<int>(divide(unit, p.by_parts)), part = unit - number * parts;
    const E* run = x + number * p.x.view;
    E* to = reinterpret_cast<E*>(shared + staged_run(p, run, number));
    int head = (kLanes<E> - misalignment(run)) % kLanes<E>;
    head = head < elements ? head : elements;
    const int vectors = (elements - head) / kLanes<E>, tail = head + vectors * kLanes<E>;
    const E* from = run + head + (part * kWarp + lane) * kLanes<E>;
    for (int v = part * kWarp + lane; v < vectors; v += parts * kWarp, from += parts * kWarp * kLanes<E>)
      copy_vector(from, to + head + v * kLanes<E> + (kGaps ? bytes_between<E>(p, v) / int(sizeof(E)) : 0));
    const int single = lane < head ? lane : tail + lane - head;
    if (part == 0 && kLanes<E> > 1 && single < elements) to[single] = run[single];
  }
  await_copies();
}

// The way back of a run that is staged as `from`, `misaligned` elements after a 16-byte boundary.
template <class E>
EQK_HD void unstage_run(const Plan& p, const unsigned char* from, E* out, int misaligned, int elements, int thread) {
  const E* staged = reinterpret_cast<const E*>(from);
  if (misalignment(out) != misaligned) {  // then rows are no whole vectors
    for (int n = thread; n < elements; n += kThreads) out[n] = staged[n];
    return;
  }
  int head = (kLanes<E> - misaligned) % kLanes<E>;
  head = head < elements ? head : elements;
  const int vectors = (elements - head) / kLanes<E>, tail = head + vectors * kLanes<E>;
  for (int v = thread; v < vectors; v += kThreads) {
    const int n = head + v * kLanes<E>;
    store_group(reinterpret_cast<Bytes16*>(out + n), load_staged(staged + n + bytes_between<E>(p, v) / int(sizeof(E))));
  }
  const int single = thread < head ? thread : tail + thread - head;
  if (kLanes<E> > 1 && single < elements) out[single] = staged[single];
}

// The square tiles of a plane of any size.
template <int kSide>
struct Tile {
  int64_t plane, row, col;
  int rows, cols;

  EQK_HD Tile(int64_t block, int64_t H, int64_t W) {
    const int64_t across = (W + kSide - 1) / kSide, down = (H + kSide - 1) / kSide;
    plane = quotient(block, across * down);
    const int64_t in_plane = block - plane * (across * down);
    const int64_t above = quotient(in_plane, across);
    row = above * kSide;
    col = (in_plane - above * across) * kSide;
    rows = static_cast<int>(H - row < kSide ? H - row : kSide);
    cols = static_cast<int>(W - col < kSide ? W - col : kSide);
  }
};

template <class E>
constexpr int kTileSide = sizeof(E) <= 2 ? 64 : sizeof(E) <= 8 ? 32 : 16;

// Sums are held in registers: single elements need as many of these as vectors, in smaller tiles.
template <class E, bool kVectors>
constexpr int kSumTileSide = kVectors ? kTileSide<E> : 32;

}  // namespace cuda
}  // namespace equikern
