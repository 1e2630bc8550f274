// What one thread of an orbit block does, before and after the barrier. Host/device code: launched by orbit.cu, and
// run thread after thread on the CPU by the tests.
#pragma once

#include <type_traits>

#include "grid_index.h"
#include "orbit_plan.h"

namespace equikern {

template <class E>
constexpr int kLanes = 16 / sizeof(E);

template <class E>
struct alignas(16) Vector {
  E lane[kLanes<E>];
};

// One 16-byte store: left to itself, nvcc splits some into two.
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

struct alignas(16) Bytes16 {
  uint64_t low, high;
};

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
  int64_t x, out;
};

// Where a plane starts in x and in a view.
EQK_HD Offsets plane_offsets(const OrbitPlan& p, int64_t plane) {
  Offsets at{0, 0};
  for (int d = p.n_lead - 1; d >= 0; --d) {
    const int64_t rest = plane / p.lead[d], k = plane - rest * p.lead[d];
    at.x += k * p.x_lead[d];
    at.out += k * p.out_lead[d];
    plane = rest;
  }
  return at;
}

// Square tiles. Read once with coalesced rows, written to every view with coalesced rows.
template <class E, bool kVectors>
struct Tiles {
  static constexpr int kSide = sizeof(E) <= 2 ? 64 : sizeof(E) <= 8 ? 32 : 16;
  static constexpr int kPitch = kSide + (sizeof(E) < 4 ? 4 / sizeof(E) : 1);  // odd in words: columns without conflicts
  static constexpr int kSharedBytes = kSide * kPitch * sizeof(E);
  static constexpr int kStep = kVectors ? kLanes<E> : 1;
  static constexpr int kSteps = kSide * kSide / kStep;
  using Group = typename std::conditional<kVectors, Vector<E>, E>::type;

  struct Tile {
    int64_t plane, row, col;
    int rows, cols;
  };

  static EQK_HD Tile tile(const OrbitPlan& p, int64_t block) {
    const int64_t across = (p.W + kSide - 1) / kSide, down = (p.H + kSide - 1) / kSide;
    const int64_t plane = block / (across * down), in_plane = block - plane * (across * down);
    const int64_t row = in_plane / across * kSide, col = in_plane % across * kSide;
    const int64_t below = p.H - row, right = p.W - col;
    return {plane, row, col, static_cast<int>(below < kSide ? below : kSide),
            static_cast<int>(right < kSide ? right : kSide)};
  }

  static EQK_HD void load(const OrbitPlan& p, int64_t block, int thread, void* shared) {
    const Tile t = tile(p, block);
    const E* x = reinterpret_cast<const E*>(p.x) + plane_offsets(p, t.plane).x + t.row * p.x_row + t.col;
    E* staged = static_cast<E*>(shared);
    for (int step = thread; step < kSteps; step += kThreads) {
      const int i = step / (kSide / kStep), j = step % (kSide / kStep) * kStep;
      if (i >= t.rows || j >= t.cols) continue;
      const Group group = *reinterpret_cast<const Group*>(x + i * p.x_row + j);
      for (int k = 0; k < kStep; ++k) staged[i * kPitch + j + k] = reinterpret_cast<const E*>(&group)[k];
    }
  }

  static EQK_HD void store(const OrbitPlan& p, int64_t block, int thread, const void* shared) {
    const Tile t = tile(p, block);
    E* out = reinterpret_cast<E*>(p.out) + plane_offsets(p, t.plane).out;
    const E* staged = static_cast<const E*>(shared);
    for (int g = 0; g < p.n_views; ++g, out += p.out_view) {
      const unsigned code = p.code[g];
      const LinearView view = linear_view(code, t.rows, t.cols, kPitch);
      const Point a = target_point(code, t.row, t.col, p.H, p.W);
      const Point b = target_point(code, t.row + t.rows - 1, t.col + t.cols - 1, p.H, p.W);
      E* corner = out + (a.row < b.row ? a.row : b.row) * p.out_row + (a.col < b.col ? a.col : b.col);
      const int rows = code & kTranspose ? t.cols : t.rows, cols = code & kTranspose ? t.rows : t.cols;
      for (int step = thread; step < kSteps; step += kThreads) {
        const int i = step / (kSide / kStep), j = step % (kSide / kStep) * kStep;
        if (i >= rows || j >= cols) continue;
        Group group;
        const E* from = staged + view.origin + i * view.down + j * view.right;
        for (int k = 0; k < kStep; ++k) reinterpret_cast<E*>(&group)[k] = from[k * view.right];
        store_group(reinterpret_cast<Group*>(corner + i * p.out_row + j), group);
      }
    }
  }
};

// Whole planes as one run of memory: 16-byte accesses whatever the plane's size and wherever the run starts.
template <class E>
struct Runs {
  // Elements in front of the first 16-byte boundary.
  static EQK_HD int head(const E* start, int count) {
    const int apart = static_cast<int>((16 - reinterpret_cast<uintptr_t>(start) % 16) % 16 / sizeof(E));
    return apart < count ? apart : count;
  }

  // The staged run lies as far from a 16-byte boundary as in x, so that vectors stay vectors.
  template <class Shared>
  static EQK_HD Shared* staging(const E* x, Shared* shared) {
    return shared + reinterpret_cast<uintptr_t>(x) % 16 / sizeof(E);
  }

  static EQK_HD int64_t first_plane(const OrbitPlan& p, int64_t block) { return block * p.planes_per_block; }

  static EQK_HD int run_length(const OrbitPlan& p, int64_t block) {
    const int64_t left = p.planes - first_plane(p, block);
    return static_cast<int>((left < p.planes_per_block ? left : p.planes_per_block) * p.H * p.W);
  }

  static EQK_HD void load(const OrbitPlan& p, int64_t block, int thread, void* shared) {
    const E* x = reinterpret_cast<const E*>(p.x) + first_plane(p, block) * p.H * p.W;
    E* staged = staging(x, static_cast<E*>(shared));
    const int n = run_length(p, block), start = head(x, n), vectors = (n - start) / kLanes<E>;
    if (thread < start) staged[thread] = x[thread];
    for (int v = thread; v < vectors; v += kThreads)
      reinterpret_cast<Vector<E>*>(staged + start)[v] = reinterpret_cast<const Vector<E>*>(x + start)[v];
    const int tail = start + vectors * kLanes<E> + thread;
    if (tail < n) staged[tail] = x[tail];
  }

  // A pixel of a view, walked in the order of memory.
  struct Cursor {
    const E* plane;
    int i, j;
  };

  static EQK_HD Cursor cursor(const OrbitPlan& p, const E* staged, int n) {
    const int size = static_cast<int>(p.H * p.W), width = static_cast<int>(p.out_W);
    const int plane = divide(n, p.by_plane), pixel = n - plane * size, i = divide(pixel, p.by_out_W);
    return {staged + plane * size, i, pixel - i * width};
  }

  static EQK_HD E next(const OrbitPlan& p, const LinearView& view, Cursor& at) {
    const E value = at.plane[view.origin + at.i * view.down + at.j * view.right];
    if (++at.j == p.out_W) {
      at.j = 0;
      if (++at.i == p.out_H) at.i = 0, at.plane += p.H * p.W;
    }
    return value;
  }

  static EQK_HD void store(const OrbitPlan& p, int64_t block, int thread, const void* shared) {
    const int64_t offset = first_plane(p, block) * p.H * p.W;
    const E* staged = staging(reinterpret_cast<const E*>(p.x) + offset, static_cast<const E*>(shared));
    const int n = run_length(p, block);
    for (int g = 0; g < p.n_views; ++g) {
      E* out = reinterpret_cast<E*>(p.out) + g * p.out_view + offset;
      const LinearView view =
          linear_view(p.code[g], static_cast<int>(p.H), static_cast<int>(p.W), static_cast<int>(p.W));
      const int start = head(out, n), vectors = (n - start) / kLanes<E>, tail = start + vectors * kLanes<E> + thread;
      for (int v = thread; v < vectors; v += kThreads) {
        Cursor at = cursor(p, staged, start + v * kLanes<E>);
        Vector<E> vector;
        for (int k = 0; k < kLanes<E>; ++k) vector.lane[k] = next(p, view, at);
        store_group(reinterpret_cast<Vector<E>*>(out + start) + v, vector);
      }
      for (const int single : {thread < start ? thread : n, tail})
        if (single < n) {
          Cursor at = cursor(p, staged, single);
          out[single] = next(p, view, at);
        }
    }
  }
};

// Any strides: a thread reads one element and writes it to every view.
template <class E>
struct Strided {
  static EQK_HD void load(const OrbitPlan&, int64_t, int, void*) {}

  // Index is 32 bits wide where it can be: 64-bit divisions are slow.
  template <class Index>
  static EQK_HD void move(const OrbitPlan& p, Index index) {
    int64_t x = 0, out = 0, row = 0, col = 0;
    for (int n = 0; n < p.n_lead + 2; ++n) {
      const int d = p.order[n];
      const Index size = static_cast<Index>(d < p.n_lead ? p.lead[d] : d == p.n_lead ? p.H : p.W);
      const Index rest = index / size;
      const int64_t k = index - rest * size;
      index = rest;
      if (d < p.n_lead) {
        x += k * p.x_lead[d];
        out += k * p.out_lead[d];
      } else if (d == p.n_lead) {
        row = k;
      } else {
        col = k;
      }
    }
    const E value = reinterpret_cast<const E*>(p.x)[x + row * p.x_row + col * p.x_col];
    for (int g = 0; g < p.n_views; ++g) {
      const Point to = target_point(p.code[g], row, col, p.H, p.W);
      reinterpret_cast<E*>(p.out)[g * p.out_view + out + to.row * p.out_row + to.col * p.out_col] = value;
    }
  }

  static EQK_HD void store(const OrbitPlan& p, int64_t block, int thread, const void*) {
    const int64_t index = block * kThreads + thread, count = p.planes * p.H * p.W;
    if (index >= count) return;
    if (count <= INT32_MAX)
      move<uint32_t>(p, static_cast<uint32_t>(index));
    else
      move<int64_t>(p, index);
  }
};

}  // namespace equikern
