// What one thread of a weighted mean's backward does between barriers: the weighted orbit of x, and the dots of its
// views with y, from one read of both. A block's dots go to `partial`; SumOfDots adds those of a column. The partition
// and every order of addition depend on the shapes alone, so results repeat bit by bit.
#pragma once

#include "move_block.h"

namespace equikern {
namespace cuda {

// The sums of a block's threads, for each view: first to kDotLanes, then to one.
template <class A>
struct BlockSums {
  static constexpr int kBytesPerView = (kThreads + kDotLanes) * sizeof(A);

  static EQK_HD void fold(A* sums, int views, int thread) {
    A* folded = sums + views * kThreads;
    for (int slot = thread; slot < views * kDotLanes; slot += kThreads) {
      const A* from = sums + slot / kDotLanes * kThreads + slot % kDotLanes;
      A sum = 0;
      for (int k = 0; k < kThreads; k += kDotLanes) sum += from[k];
      folded[slot] = sum;
    }
  }

  static EQK_HD A total(const A* sums, int views, int view) {
    const A* folded = sums + views * kThreads + view * kDotLanes;
    A sum = 0;
    for (int k = 0; k < kDotLanes; ++k) sum += folded[(k + view) % kDotLanes];  // views start in different banks
    return sum;
  }
};

// The last two phases of both kernels.
template <class A>
EQK_HD void finish_dots(const Plan& p, int64_t block, int thread, A* sums, bool fold) {
  if (fold)
    BlockSums<A>::fold(sums, p.n_views, thread);
  else if (thread < p.n_views)
    static_cast<A*>(p.partial)[thread * p.blocks + block] = BlockSums<A>::total(sums, p.n_views, thread);
}

template <class T, bool kVectors>
struct DotTiles {
  using Move = MoveTiles<Scale<T>, kVectors>;
  using A = Accumulator<T>;
  using Group = typename Move::Group;
  struct State {};
  static constexpr int kPhases = 4;
  static constexpr int kSide = Move::kSide, kStep = Move::kStep;
  static constexpr int kTileBytes = (Move::kSharedBytes + 15) / 16 * 16;

  static int shared_bytes(const Plan& p) { return kTileBytes + p.n_views * BlockSums<A>::kBytesPerView; }

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State&) {
    const Tile<kSide> t(block, p.H, p.W);
    const Offsets at = plane_offsets(p, t.plane);
    T* staged = reinterpret_cast<T*>(shared);
    A* sums = reinterpret_cast<A*>(shared + kTileBytes);
    if constexpr (kPhase == 0)
      Move::load(p, t, at.x, thread, staged);
    else if constexpr (kPhase == 1)
      multiply(p, t, at, thread, staged, sums);
    else
      finish_dots(p, block, thread, sums, kPhase == 2);
  }

  static EQK_HD void multiply(const Plan& p, const Tile<kSide>& t, const Offsets& at, int thread, const T* staged,
                              A* sums) {
    for (int g = 0; g < p.n_views; ++g) {
      const auto s = Move::shown(p, t, p.code[g]);
      const A weight = p.weights ? weight_of<A>(p, g, t.plane) : A(1);
      const T* y = reinterpret_cast<const T*>(p.y.data) + at.y + g * p.y.view + s.row * p.y.row + s.col;
      T* out = reinterpret_cast<T*>(p.out.data) + at.out + g * p.out.view + s.row * p.out.row + s.col;
      A dot = 0;
      for (int step = thread; step < Move::kSteps; step += kThreads) {
        const int i = step / (kSide / kStep), j = step % (kSide / kStep) * kStep;
        if (i >= s.rows || j >= s.cols) continue;
        const Group other = load_group(reinterpret_cast<const Group*>(y + i * p.y.row + j));
        const T* from = staged + s.view.origin + i * s.view.down + j * s.view.right;
        Group group;
        for (int k = 0; k < kStep; ++k) {
          const A value = widen(from[k * s.view.right]);
          dot += value * widen(reinterpret_cast<const T*>(&other)[k]);
          narrow(value * weight, reinterpret_cast<T*>(&group)[k]);
        }
        if (p.out.data) store_group(reinterpret_cast<Group*>(out + i * p.out.row + j), group);
      }
      sums[g * kThreads + thread] = dot;
    }
  }
};

// Some pixels of the views of a thread: neighbouring threads take neighbouring ones, so that they read and write whole
// segments of memory, whatever the planes' size. Their places are found once for all views.
template <class E>
struct Pixels {
  static constexpr int kCount = 4;
  int plane[kCount], i[kCount], j[kCount];  // bytes before its plane, and where in that; the first's where there is none
  bool there[kCount];

  // From number n on.
  EQK_HD Pixels(const Plan& p, int n, int elements) {
    const int size = static_cast<int>(p.H * p.W), across = static_cast<int>(p.out_W);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int e = 0; e < kCount; ++e) {
      const int m = n + e * kThreads, number = static_cast<int>(divide(m, p.by_plane)), rest = m - number * size;
      there[e] = m < elements;
      i[e] = static_cast<int>(divide(rest, p.by_out_W));
      j[e] = rest - i[e] * across;
      plane[e] = there[e] ? number * p.plane_bytes : 0;
      if (!there[e]) i[e] = j[e] = 0;
    }
  }

  EQK_HD E at(const unsigned char* staged, const LinearView& view, int e) const {
    return *reinterpret_cast<const E*>(staged + (plane[e] + view.origin + i[e] * view.down + j[e] * view.right));
  }
};

template <class T>
struct DotRuns {
  using A = Accumulator<T>;
  struct State {};
  static constexpr int kPhases = 4;

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State&) {
    const Planes planes = planes_of(p, block);
    const int64_t offset = planes.first * p.H * p.W;
    const T* x = reinterpret_cast<const T*>(p.x.data) + offset;
    A* factors = reinterpret_cast<A*>(shared);
    A* sums = reinterpret_cast<A*>(shared + p.staged_start + p.run_bytes);
    if constexpr (kPhase == 0) {
      stage_runs(p, x, 1, planes.elements, thread, shared);
      if (thread < p.n_views) factors[thread] = p.weights ? weight_of<A>(p, thread, planes.first) : A(1);
    } else if constexpr (kPhase == 1) {
      const unsigned char* staged = shared + staged_run(p, x, 0);
      for (int g = 0; g < p.n_views; ++g) sums[g * kThreads + thread] = 0;
      for (int n = thread; n < planes.elements; n += Pixels<T>::kCount * kThreads) {
        const Pixels<T> pixels(p, n, planes.elements);
        const T* y = reinterpret_cast<const T*>(p.y.data) + offset + n;
        T* out = reinterpret_cast<T*>(p.out.data) + offset + n;
        for (int g = 0; g < p.n_views; ++g, y += p.y.view, out += p.out.view) {
          const LinearView view = p.views[g];
          const A factor = factors[g];
          A values[Pixels<T>::kCount], dot = 0;
          for (int e = 0; e < Pixels<T>::kCount; ++e) {
            values[e] = widen(pixels.at(staged, view, e));
            if (pixels.there[e]) dot += values[e] * widen(y[e * kThreads]);
          }
          for (int e = 0; e < Pixels<T>::kCount; ++e)
            if (p.out.data && pixels.there[e]) narrow(values[e] * factor, out[e * kThreads]);
          sums[g * kThreads + thread] += dot;
        }
      }
    } else {
      finish_dots(p, block, thread, sums, kPhase == 2);
    }
  }
};

// The partial dots of one view and column, added in the order of the blocks.
template <class A>
struct SumOfDots {
  struct State {};
  static constexpr int kPhases = 3;
  static constexpr int kSharedBytes = BlockSums<A>::kBytesPerView;

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State&) {
    const int64_t view = quotient(block, p.weight_columns), column = block - view * p.weight_columns;
    A* sums = reinterpret_cast<A*>(shared);
    if constexpr (kPhase == 0) {
      const A* partial = static_cast<const A*>(p.partial) + view * p.blocks + column * p.blocks_per_column;
      A sum = 0;
      for (int64_t k = thread; k < p.blocks_per_column; k += kThreads) sum += partial[k];
      sums[thread] = sum;
    } else if constexpr (kPhase == 1) {
      BlockSums<A>::fold(sums, 1, thread);
    } else if (thread == 0) {
      static_cast<A*>(p.dots)[block] = BlockSums<A>::total(sums, 1, 0);
    }
  }
};

}  // namespace cuda
}  // namespace equikern
