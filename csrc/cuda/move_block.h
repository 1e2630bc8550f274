// What one thread of an orbit or selection does, before and after the barrier. Host/device code: launched by orbit.cu
// and select.cu, and run thread after thread on the CPU by the tests.
#pragma once

#include "places.h"

namespace equikern {
namespace cuda {

// What happens to the elements on the way. A factor is a view's, for all planes of a column.
template <class E>
struct Copy {
  using Element = E;
  using Factor = int;
  static constexpr bool kSelects = false, kScales = false;
  static EQK_HD Factor factor(const Plan&, int, int64_t) { return 1; }
  static EQK_HD E apply(E value, Factor) { return value; }
};

template <class E>
struct Pick : Copy<E> {
  static constexpr bool kSelects = true;
};

template <class T>
struct Scale {
  using Element = T;
  using Factor = Accumulator<T>;
  static constexpr bool kSelects = false, kScales = true;
  static EQK_HD Factor factor(const Plan& p, int g, int64_t plane) {
    const Factor scale = static_cast<Factor>(p.scale);
    return p.weights ? scale * weight_of<Factor>(p, g, plane) : scale;
  }
  static EQK_HD T apply(T value, Factor factor) {
    T to;
    narrow(widen(value) * factor, to);
    return to;
  }
};

// The view with the best score: NaN never wins, ties go to the lowest, and so does all NaN.
template <class S>
EQK_HD int best_view(const Plan& p, int64_t column) {
  const S* scores = static_cast<const S*>(p.scores) + column;
  int best = 0;
  S least = p.minimum ? scores[0] : -scores[0];
  for (int g = 1; g < p.n_views; ++g) {
    const S score = scores[g * p.index_columns], key = p.minimum ? score : -score;
    if (key < least || (least != least && key == key)) best = g, least = key;
  }
  return best;
}

// The view a plane is taken from; `writes` tells the one thread that notes it down for the plane's column.
EQK_HD int chosen_view(const Plan& p, int64_t plane, bool writes) {
  const int64_t column = quotient(plane, p.planes_per_index);
  if (p.scores) {
    const int best = p.scores_double ? best_view<double>(p, column) : best_view<float>(p, column);
    if (writes && plane == column * p.planes_per_index) p.index[column] = best;
    return best;
  }
  const int64_t given = p.index[column], last = p.n_views - 1;
  return static_cast<int>(given < 0 ? 0 : given > last ? last : given);
}

// The views to write: all, or with kSelects the chosen one, to a result without an axis of views.
struct Range {
  int begin, end;
};

template <class Map>
EQK_HD Range views_to_write(const Plan& p, int chosen) {
  return Map::kSelects ? Range{chosen, chosen + 1} : Range{0, p.n_views};
}

// The one view that an orbit with an index does not leave zero.
struct Kept {
  bool one;
  int64_t view;
  EQK_HD bool blanks(int g) const { return one && view != g; }
};

template <class Map>
EQK_HD Kept kept_view(const Plan& p, int64_t plane) {
  if (Map::kSelects || !p.index) return {false, 0};
  return {true, p.index[quotient(plane, p.planes_per_index)]};
}

struct MoveState {
  int chosen = 0;
  Planes planes{};  // runs
};

// Square tiles. Read once with coalesced rows, written to every view with coalesced rows.
template <class Map, bool kVectors>
struct MoveTiles {
  using E = typename Map::Element;
  using State = MoveState;
  static constexpr int kPhases = 2;
  static constexpr int kSide = kTileSide<E>;
  static constexpr int kPitch = kSide + (sizeof(E) < 4 ? 4 / sizeof(E) : 1);  // odd in words: columns without conflicts
  static constexpr int kSharedBytes = kSide * kPitch * sizeof(E);
  static constexpr int kStep = kVectors ? kLanes<E> : 1;
  static constexpr int kSteps = kSide * kSide / kStep;
  using Group = typename std::conditional<kVectors, Vector<E>, E>::type;

  static EQK_HD void load(const Plan& p, const Tile<kSide>& t, int64_t offset, int thread, E* staged) {
    const E* x = reinterpret_cast<const E*>(p.x.data) + offset + t.row * p.x.row + t.col;
    for (int step = thread; step < kSteps; step += kThreads) {
      const int i = step / (kSide / kStep), j = step % (kSide / kStep) * kStep;
      if (i >= t.rows || j >= t.cols) continue;
      const Group group = load_group(reinterpret_cast<const Group*>(x + i * p.x.row + j));
      for (int k = 0; k < kStep; ++k) staged[i * kPitch + j + k] = reinterpret_cast<const E*>(&group)[k];
    }
  }

  // A tile as a view shows it: its size there, its corner, and where its elements are staged.
  struct Shown {
    int rows, cols;
    int64_t row, col;
    LinearView view;
  };

  static EQK_HD Shown shown(const Plan& p, const Tile<kSide>& t, unsigned code) {
    const Point a = target_point(code, t.row, t.col, p.H, p.W);
    const Point b = target_point(code, t.row + t.rows - 1, t.col + t.cols - 1, p.H, p.W);
    const bool turned = code & kTranspose;
    return {turned ? t.cols : t.rows, turned ? t.rows : t.cols, a.row < b.row ? a.row : b.row,
            a.col < b.col ? a.col : b.col, linear_view(code, t.rows, t.cols, kPitch)};
  }

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State& state) {
    const Tile<kSide> t(block, p.H, p.W);
    const Offsets at = plane_offsets(p, t.plane);
    E* staged = reinterpret_cast<E*>(shared);
    if constexpr (kPhase == 0) {
      if (Map::kSelects) state.chosen = chosen_view(p, t.plane, thread == 0 && t.row + t.col == 0);
      load(p, t, at.x + state.chosen * p.x.view, thread, staged);
    } else {
      store(p, t, at.out, thread, staged, state.chosen);
    }
  }

  static EQK_HD void store(const Plan& p, const Tile<kSide>& t, int64_t offset, int thread, const E* staged, int chosen) {
    const Range views = views_to_write<Map>(p, chosen);
    const Kept kept = kept_view<Map>(p, t.plane);
    for (int g = views.begin; g < views.end; ++g) {
      const Shown s = shown(p, t, p.code[g]);
      const auto factor = Map::factor(p, g, t.plane);
      const bool blank = kept.blanks(g);
      E* corner = reinterpret_cast<E*>(p.out.data) + offset + g * p.out.view + s.row * p.out.row + s.col;
      for (int step = thread; step < kSteps; step += kThreads) {
        const int i = step / (kSide / kStep), j = step % (kSide / kStep) * kStep;
        if (i >= s.rows || j >= s.cols) continue;
        Group group;
        const E* from = staged + s.view.origin + i * s.view.down + j * s.view.right;
        for (int k = 0; k < kStep; ++k)
          reinterpret_cast<E*>(&group)[k] = blank ? zero<E>() : Map::apply(from[k * s.view.right], factor);
        store_group(reinterpret_cast<Group*>(corner + i * p.out.row + j), group);
      }
    }
  }
};

// Whole planes as one run of memory, whatever their size and wherever it starts.
template <class Map>
struct MoveRuns {
  using E = typename Map::Element;
  using Factor = typename Map::Factor;
  using State = MoveState;
  static constexpr int kPhases = 2;

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State& state) {
    if (kPhase == 0) {
      state.planes = planes_of(p, block);
      if (Map::kSelects) state.chosen = chosen_view(p, state.planes.first, thread == 0);
    }
    const Planes planes = state.planes;
    const int64_t offset = planes.first * p.H * p.W;
    const E* x = reinterpret_cast<const E*>(p.x.data) + state.chosen * p.x.view + offset;
    Factor* factors = reinterpret_cast<Factor*>(shared);
    if constexpr (kPhase == 0) {
      stage_runs(p, x, 1, planes.elements, thread, shared);
      if (Map::kScales && thread < p.n_views) factors[thread] = Map::factor(p, thread, planes.first);
    } else {
      const Range range = views_to_write<Map>(p, state.chosen);
      const uint32_t start = Places<E>::both(staged_run(p, x, 0));
      const Kept kept = kept_view<Map>(p, planes.first);
      // Whether a vector is as far from a boundary in every view, and to be read.
      const bool alike = Map::kSelects || (p.out.view % Places<E>::kCount == 0 && !kept.one);
      for (int n = thread; n < Places<E>::most(planes.elements); n += kThreads) {
        Places<E> places;
        E* out = reinterpret_cast<E*>(p.out.data) + range.begin * p.out.view + offset;
        places.find(p, n, misalignment(out), planes.elements);
        E values[Places<E>::kCount];
        const auto read = [&](int g) {
          places.read(shared, start, p.views[g], values);
          const Factor factor = Map::kScales ? factors[g] : Factor(1);
          for (int k = 0; k < Places<E>::kCount; ++k) values[k] = Map::apply(values[k], factor);
        };
        if (alike && places.whole) {
          E* to = out + places.first;
          for (int g = range.begin; g < range.end; ++g, to += p.out.view) {
            read(g);
            places.write_whole(values, to);
          }
          continue;
        }
        for (int g = range.begin; g < range.end; ++g, out += p.out.view) {
          if (places.shift != misalignment(out)) places.find(p, n, misalignment(out), planes.elements);
          if (kept.blanks(g))
            for (int k = 0; k < Places<E>::kCount; ++k) values[k] = zero<E>();
          else
            read(g);
          places.write(values, planes.elements, out);
        }
      }
    }
  }
};

// Any strides: a thread reads one element and writes it to every view.
template <class E>
struct MoveStrided {
  using State = MoveState;
  static constexpr int kPhases = 1;

  // Index is 32 bits wide where it can be: 64-bit divisions are slow.
  template <class Index>
  static EQK_HD void move(const Plan& p, Index index) {
    int64_t x = 0, out = 0, row = 0, col = 0;
    for (int n = 0; n < p.n_lead + 2; ++n) {
      const int d = p.order[n];
      const Index size = static_cast<Index>(d < p.n_lead ? p.lead[d] : d == p.n_lead ? p.H : p.W);
      const Index rest = index / size;
      const int64_t k = index - rest * size;
      index = rest;
      if (d < p.n_lead) {
        x += k * p.x.lead[d];
        out += k * p.out.lead[d];
      } else if (d == p.n_lead) {
        row = k;
      } else {
        col = k;
      }
    }
    const E value = reinterpret_cast<const E*>(p.x.data)[x + row * p.x.row + col * p.x.col];
    for (int g = 0; g < p.n_views; ++g) {
      const Point to = target_point(p.code[g], row, col, p.H, p.W);
      reinterpret_cast<E*>(p.out.data)[g * p.out.view + out + to.row * p.out.row + to.col * p.out.col] = value;
    }
  }

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char*, State&) {
    const int64_t index = block * kThreads + thread, count = p.planes * p.H * p.W;
    if (index >= count) return;
    if (count <= INT32_MAX)
      move<uint32_t>(p, static_cast<uint32_t>(index));
    else
      move<int64_t>(p, index);
  }
};

// The names that profilers show.
template <class E, bool kVectors>
struct OrbitTiles : MoveTiles<Copy<E>, kVectors> {};
template <class E>
struct OrbitRuns : MoveRuns<Copy<E>> {};
template <class E>
struct OrbitStrided : MoveStrided<E> {};
template <class T, bool kVectors>
struct ScaledOrbitTiles : MoveTiles<Scale<T>, kVectors> {};
template <class T>
struct ScaledOrbitRuns : MoveRuns<Scale<T>> {};
template <class E, bool kVectors>
struct SelectTiles : MoveTiles<Pick<E>, kVectors> {};
template <class E>
struct SelectRuns : MoveRuns<Pick<E>> {};

}  // namespace cuda
}  // namespace equikern
