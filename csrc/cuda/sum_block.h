// What one thread of a sum over the views does between barriers: mean, weighted sum, weighted mean, symmetrize.
#pragma once

#include "places.h"

namespace equikern {
namespace cuda {

// Σ scaled or divided by the weights' sum: what every sum ends with.
template <class A>
EQK_HD A final_factor(const Plan& p, int64_t plane) {
  return p.normalized ? A(1) / sum_of_weights<A>(p, plane) : static_cast<A>(p.scale);
}

// Whole planes of every view staged as runs of memory; with one tensor for all views it is staged once.
template <class T>
struct SumRuns {
  using A = Accumulator<T>;
  struct State {
    Planes planes;
  };
  struct alignas(2 * sizeof(A)) Term {  // of the sum: a view's weight, and where its run is staged
    A factor;
    uint32_t start;
  };
  static_assert(sizeof(Term) <= kViewBytes, "as the plan has room for");
  static constexpr int kPhases = 2;

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State& state) {
    if (kPhase == 0) state.planes = planes_of(p, block);
    const Planes planes = state.planes;
    const int64_t offset = planes.first * p.H * p.W;
    const T* x = reinterpret_cast<const T*>(p.x.data) + offset;
    T* out = reinterpret_cast<T*>(p.out.data) + offset;
    Term* terms = reinterpret_cast<Term*>(shared);
    if constexpr (kPhase == 0) {
      stage_runs(p, x, p.x.view ? p.n_views : 1, planes.elements, thread, shared);
      if (thread < p.n_views)
        terms[thread] = {p.weights ? weight_of<A>(p, thread, planes.first) : A(1),
                         Places<T>::both(staged_run(p, x + thread * p.x.view, p.x.view ? thread : 0))};
    } else {
      using Vector = Places<T>;
      const A last = final_factor<A>(p, planes.first);
      for (int n = thread; n < Vector::most(planes.elements); n += kThreads) {
        Vector places;
        places.find(p, n, misalignment(out), planes.elements);
        A sums[Vector::kCount] = {};
        T values[Vector::kCount];
        for (int g = 0; g < p.n_views; ++g) {
          const Term term = terms[g];
          places.read(shared, term.start, p.views[g], values);
          for (int k = 0; k < Vector::kCount; ++k) sums[k] += term.factor * widen(values[k]);
        }
        for (int k = 0; k < Vector::kCount; ++k) narrow(sums[k] * last, values[k]);
        places.write(values, planes.elements, out);
      }
    }
  }
};

// Square tiles of the result. Views that share (transposed, columns reversed) are added first, in registers, since
// their rows only come from other addresses; then each class is mirrored once and the transposed ones turned once.
template <class T, bool kVectors>
struct SumTiles {
  using A = Accumulator<T>;
  static constexpr int kPhases = 3;
  static constexpr int kSide = kSumTileSide<T, kVectors>;
  static constexpr int kStep = kVectors ? kLanes<T> : 1;
  static constexpr int kPerRow = kSide / kStep;
  static constexpr int kRounds = kSide * kPerRow / kThreads;
  static constexpr int kSharedBytes = 2 * kSide * kSide * sizeof(A);
  static_assert(kRounds * kThreads == kSide * kPerRow, "every thread has the same number of groups");
  using Group = typename std::conditional<kVectors, Vector<T>, T>::type;

  struct State {
    A straight[kRounds][kStep], turned[kRounds][kStep];
  };

  // Rows are shifted against each other by an exclusive or, so that both rows and columns of sums meet no bank twice.
  static EQK_HD int place(int i, int j) {
    constexpr int quad = 16 / sizeof(A) < kStep ? 16 / sizeof(A) : kStep;
    return i * kSide + (j ^ (i / kStep * quad % kSide));
  }

  // The part of a view's source that a tile of the result shows.
  struct Source {
    int rows, cols;
    int64_t row, col;
  };

  static EQK_HD Source source(const Plan& p, const Tile<kSide>& t, unsigned code) {
    const Point a = source_point(code, t.row, t.col, p.H, p.W);
    const Point b = source_point(code, t.row + t.rows - 1, t.col + t.cols - 1, p.H, p.W);
    const bool turned = code & kTranspose;
    return {turned ? t.cols : t.rows, turned ? t.rows : t.cols, a.row < b.row ? a.row : b.row,
            a.col < b.col ? a.col : b.col};
  }

  // Adds the views of a class, 0 … 3: 1 = transposed, 2 = columns reversed.
  static EQK_HD void add_class(const Plan& p, const Tile<kSide>& t, int64_t offset, int thread, int number,
                               A (&sum)[kRounds][kStep]) {
    for (int r = 0; r < kRounds; ++r)
      for (int k = 0; k < kStep; ++k) sum[r][k] = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int n = number ? p.class_end[number - 1] : 0; n < p.class_end[number]; ++n) {
      const int g = p.sorted[n];
      const Source s = source(p, t, p.code[g]);
      const bool reversed = p.code[g] & kReverseH;
      const T* x = reinterpret_cast<const T*>(p.x.data) + offset + g * p.x.view + s.row * p.x.row + s.col;
      const A weight = p.weights ? weight_of<A>(p, g, t.plane) : A(1);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int r = 0; r < kRounds; ++r) {
        const int step = thread + r * kThreads, i = step / kPerRow, j = step % kPerRow * kStep;
        if (i >= s.rows || j >= s.cols) continue;
        const Group group = load_group(reinterpret_cast<const Group*>(x + (reversed ? s.rows - 1 - i : i) * p.x.row + j));
        for (int k = 0; k < kStep; ++k) sum[r][k] += weight * widen(reinterpret_cast<const T*>(&group)[k]);
      }
    }
  }

  static EQK_HD void mirror(const A (&sum)[kRounds][kStep], int thread, int rows, int cols, A* to) {
    for (int r = 0; r < kRounds; ++r) {
      const int step = thread + r * kThreads, i = step / kPerRow, j = step % kPerRow * kStep;
      if (i >= rows || j >= cols) continue;
      for (int k = 0; k < kStep; ++k) to[place(i, cols - 1 - j - k)] = sum[r][k];
    }
  }

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State& state) {
    const Tile<kSide> t(block, p.out_H, p.out_W);
    const Offsets at = plane_offsets(p, t.plane);
    const bool turned = p.class_end[0] != p.class_end[1] || p.class_end[2] != p.class_end[3];
    const bool mirrored = p.class_end[1] != p.class_end[2], both = p.class_end[2] != p.class_end[3];
    A* turning = reinterpret_cast<A*>(shared);
    A* mirroring = turning + kSide * kSide;
    if constexpr (kPhase == 0) {
      if (both) {
        add_class(p, t, at.x, thread, 3, state.turned);
        mirror(state.turned, thread, t.cols, t.rows, turning);
      }
      if (mirrored) {
        add_class(p, t, at.x, thread, 2, state.straight);
        mirror(state.straight, thread, t.rows, t.cols, mirroring);
      }
      if (turned) add_class(p, t, at.x, thread, 1, state.turned);
      add_class(p, t, at.x, thread, 0, state.straight);
    } else if constexpr (kPhase == 1) {  // each thread at its own places: the transposed class that is not mirrored joins the one that is
      for (int r = 0; turned && r < kRounds; ++r) {
        const int step = thread + r * kThreads, i = step / kPerRow, j = step % kPerRow * kStep;
        if (i >= t.cols || j >= t.rows) continue;
        for (int k = 0; k < kStep; ++k) {
          A& sum = turning[place(i, j + k)];
          sum = both ? sum + state.turned[r][k] : state.turned[r][k];
        }
      }
    } else {
      const A last = final_factor<A>(p, t.plane);
      T* out = reinterpret_cast<T*>(p.out.data) + at.out + t.row * p.out.row + t.col;
      for (int r = 0; r < kRounds; ++r) {
        const int step = thread + r * kThreads, i = step / kPerRow, j = step % kPerRow * kStep;
        if (i >= t.rows || j >= t.cols) continue;
        Group group;
        for (int k = 0; k < kStep; ++k) {
          A sum = state.straight[r][k];
          if (mirrored) sum += mirroring[place(i, j + k)];
          if (turned) sum += turning[place(j + k, i)];
          narrow(sum * last, reinterpret_cast<T*>(&group)[k]);
        }
        store_group(reinterpret_cast<Group*>(out + i * p.out.row + j), group);
      }
    }
  }
};

}  // namespace cuda
}  // namespace equikern
