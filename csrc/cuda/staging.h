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

EQK_HD uint32_t divide(uint32_t n, const FastDivider& by) {
#if defined(__CUDA_ARCH__)
  return (__umulhi(n, by.multiplier) + n) >> by.shift;
#else
  return static_cast<uint32_t>(((static_cast<uint64_t>(n) * by.multiplier) >> 32) + n) >> by.shift;
#endif
}

// A view as a linear map from its own pixels to a position in the source: origin + i * down + j * right.
struct LinearView {
  int origin, down, right;
};

EQK_HD LinearView linear_view(unsigned code, int rows, int cols, int pitch) {
  auto at = [&](int i, int j) {
    const Point p = source_point(code, i, j, rows, cols);
    return static_cast<int>(p.row) * pitch + static_cast<int>(p.col);
  };
  return {at(0, 0), at(1, 0) - at(0, 0), at(0, 1) - at(0, 0)};
}

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
  int elements;
};

EQK_HD Planes planes_of(const Plan& p, int64_t block) {
  const int64_t column = quotient(block, p.blocks_per_column), part = block - column * p.blocks_per_column;
  const int64_t before = part * p.planes_per_block, left = p.planes_per_column - before;
  return {column * p.planes_per_column + before,
          static_cast<int>((left < p.planes_per_block ? left : p.planes_per_block) * p.H * p.W)};
}

// How far, in elements, a run starts after a 16-byte boundary. A staged run starts as far from one, so that vectors
// stay vectors on the way through shared memory.
template <class E>
EQK_HD int misalignment(const E* run) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(run) % 16 / sizeof(E));
}

// The elements of a run that share one aligned group of 16 bytes: all of it, or the part at the run's beginning or end.
template <class E>
struct Chunk {
  int first, count;
  EQK_HD Chunk(int number, int apart, int elements) {
    const int begin = number * kLanes<E> - apart, end = begin + kLanes<E>;
    first = begin < 0 ? 0 : begin;
    count = (end < elements ? end : elements) - first;
  }
  EQK_HD bool whole() const { return count == kLanes<E>; }
};

template <class E>
EQK_HD void stage_chunk(const E* run, E* staged, int number, int elements) {
  const Chunk<E> c(number, misalignment(run), elements);
  if (c.whole()) return copy_vector(run + c.first, staged + c.first);
  for (int k = 0; k < c.count; ++k) staged[c.first + k] = run[c.first + k];
}

// A pixel of a view of staged planes, walked in the order of memory.
template <class E>
struct Cursor {
  const E* staged;
  int plane, i, j;  // plane: where it starts

  EQK_HD Cursor(const Plan& p, const E* staged, int n) : staged(staged) {
    const int size = static_cast<int>(p.H * p.W), number = static_cast<int>(divide(n, p.by_plane));
    plane = number * size;
    i = static_cast<int>(divide(n - plane, p.by_out_W));
    j = n - plane - i * static_cast<int>(p.out_W);
  }

  EQK_HD int place(const LinearView& view) const { return plane + view.origin + i * view.down + j * view.right; }

  EQK_HD E next(const Plan& p, const LinearView& view) {
    const E value = staged[place(view)];
    if (++j == p.out_W) {
      j = 0;
      if (++i == p.out_H) i = 0, plane += static_cast<int>(p.H * p.W);
    }
    return value;
  }
};

EQK_HD LinearView run_view(const Plan& p, int g) {
  const int H = static_cast<int>(p.H), W = static_cast<int>(p.W);
  return linear_view(p.code[g], H, W, W);
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
