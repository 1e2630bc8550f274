// The gradients of reductions: all views of a band are brought beside one another, each gets its share of the result's
// gradient, and the shares go back to where the values came from.
#pragma once

#include <vector>

#include "reduce.h"

namespace equikern {
namespace EQK_ISA {

// A tile: a region of planes from this one on.
struct Tile {
  int64_t plane;
  Region region;
};

// Cache lines of so many bytes of every view.
inline int lines_of(int views, int64_t bytes) { return int((views * bytes + kLine - 1) / kLine); }

// Fetches what all views show of a tile into L2, a few lines at a time: rows of tiles are short and far apart, which the
// hardware does not foresee, and who waits for all of them at once does nothing meanwhile.
template <class E>
struct Ahead {
  const Problem& p;
  const Tile* tile;
  int view = 0;
  const E* first = nullptr;
  int64_t plane = 0, row = 0, line = 0, rows = 0, length = 0, plane_step = 0, row_step = 0;

  // Nothing is fetched of no tile.
  Ahead(const Problem& call, const Tile* t) : p(call), tile(t && p.V == 1 && p.in.col == 1 && !p.permutes() ? t : nullptr) {
    if (tile) start();
  }
  EQK_INLINE void fetch(int lines) {
    for (; tile && lines > 0; --lines) {
      __builtin_prefetch(first + plane * plane_step + row * row_step + line, 0, 2);
      line += kLine / int64_t(sizeof(E));
      if (line < length) continue;
      line = 0;
      if (++row < rows) continue;
      row = 0;
      if (++plane < tile->region.planes) continue;
      plane = 0;
      ++view < p.views ? start() : void(tile = nullptr);
    }
  }

 private:
  void start() {
    const Source<E> from = source<E>(p, tile->plane, view);
    const Region& r = tile->region;
    const unsigned code = p.code(view);
    const bool turned = code & kTranspose;
    const int64_t a = turned ? r.j0 : r.i0, b = turned ? r.i0 : r.j0;
    rows = turned ? r.pixels() : r.rows(), length = turned ? r.rows() : r.pixels();
    first = from.data + (code & kReverseH ? p.H - a - rows : a) * from.row + (code & kReverseW ? p.W - b - length : b);
    plane_step = from.plane, row_step = from.row;
  }
};

// What each view gets of one chunk: load(g) gives its values, store(g, its gradient) takes them. `second` is the gradient
// of the deviation of a pair; of a variance `grad` is what deviations are multiplied by.
template <int kOp, class C, class Load, class Store>
EQK_INLINE void share_chunk(int views, const C& grad, const C& second, const Load& load, const Store& store) {
  typedef typename C::A A;
  typedef typename C::V V;
  const A part = A(1) / A(views);
  if constexpr (kOp == kMax || kOp == kMin) {
    C best = load(0), share;
    V count[C::kParts];
    for (int q = 0; q < C::kParts; ++q) count[q] = V{} + A(1);
    for (int g = 1; g < views; ++g) {
      const C x = load(g);
      for (int q = 0; q < C::kParts; ++q) {
        const V v = x.v[q], s = best.v[q];
        const auto better = (kOp == kMax ? v > s : v < s) | (v != v);
        count[q] = better ? V{} + A(1) : v == s ? count[q] + A(1) : count[q];
        best.v[q] = better ? v : s;
      }
    }
    // NaN is no view's, and so is its share every view's.
    for (int q = 0; q < C::kParts; ++q) share.v[q] = best.v[q] != best.v[q] ? best.v[q] : grad.v[q] / count[q];
    for (int g = 0; g < views; ++g) {
      C x = load(g);
      for (int q = 0; q < C::kParts; ++q) x.v[q] = (x.v[q] == best.v[q] ? V{} + A(1) : V{}) * share.v[q];
      store(g, x);
    }
  } else {
    static_assert(kOp == kStd || kOp == kMeanStd || kOp == kVariance, "an operation");
    // Around one of them first: where views nearly agree, no digit of their differences is lost to their mean.
    const C first = load(0);
    C mean = {}, square = {}, factor = {};
    const auto around = [&](int g) {
      C x = load(g);
      for (int q = 0; q < C::kParts; ++q) x.v[q] = x.v[q] - first.v[q];
      return x;
    };
    for (int g = 0; g < views; ++g) mean = mean + around(g);
    mean = times(mean, part);
    const auto deviation = [&](int g) {
      C x = around(g);
      for (int q = 0; q < C::kParts; ++q) x.v[q] = x.v[q] - mean.v[q];
      return x;
    };
    for (int g = 0; kOp != kVariance && g < views; ++g) {
      const C x = deviation(g);
      for (int q = 0; q < C::kParts; ++q) square.v[q] += x.v[q] * x.v[q];
    }
    const C& of_std = kOp == kMeanStd ? second : grad;
    for (int q = 0; q < C::kParts; ++q) {
      const V all = square.v[q] * A(views);
      factor.v[q] = kOp == kVariance ? grad.v[q] : all <= V{} ? V{} : of_std.v[q] / root_lanes(all);
    }
    for (int g = 0; g < views; ++g) {
      C x = deviation(g);
      for (int q = 0; q < C::kParts; ++q) {
        x.v[q] = x.v[q] * factor.v[q];
        if constexpr (kOp == kMeanStd) x.v[q] += grad.v[q] * part;
      }
      store(g, x);
    }
  }
}

// The same for n elements, those of view g at from[g]; its shares go to to + g·n, which may be where its values are.
// `factor` is that of a variance, which has no other gradient. Meanwhile what is ahead is fetched.
template <class T, int kOp>
void share_run(int views, T* to, const Bits<T>* const* from, const T* grad, const T* second, Acc<T> factor, int64_t n,
               Ahead<Bits<T>> ahead) {
  typedef Widest<T> C;
  const int lines = lines_of(views, C::kLanes * sizeof(T));
  C factors;
  for (int q = 0; q < C::kParts; ++q) factors.v[q] = typename C::V{} + factor;
  const auto share = [&](int64_t i, const auto& read, const auto& write) {
    share_chunk<kOp, C>(views, kOp == kVariance ? factors : read(grad + i), second ? read(second + i) : C{},
                        [&](int g) { return read(numbers<T>(from[g]) + i); }, [&](int g, const C& x) { write(to + g * n + i, x); });
  };
  int64_t i = 0;
  for (; i + C::kLanes <= n; i += C::kLanes) {
    ahead.fetch(lines);
    share(i, [](const T* p) { return C::from(p); }, [](T* p, const C& x) { x.to(p); });
  }
  if (i == n) return;
  const int64_t bytes = (n - i) * sizeof(T);
  share(
      i,
      [&](const T* p) {
        alignas(64) T some[C::kLanes] = {};
        std::memcpy(static_cast<void*>(some), p, bytes);
        return C::from(some);
      },
      [&](T* p, const C& x) {
        alignas(64) T some[C::kLanes];
        x.to(some);
        std::memcpy(static_cast<void*>(p), some, bytes);
      });
}

// A region of a tensor as one run: where it is, or in `stage`.
template <class E>
inline const E* run_of(const Problem& p, const Place<E>& place, const Region& r, E* stage) {
  const Band<E> band = gathered<E>(p, place, r, stage), dense = dense_band<E>(p, r, stage);
  if (band.data == stage || is_flat(p, r, band.plane, band.row, dense.plane, dense.row)) return band.data;
  for_runs(p, r, dense.plane, dense.row, band.plane, band.row,
           [&](int64_t a, int64_t b, int64_t n) { std::memcpy(stage + a, band.data + b, n * sizeof(E)); });
  return stage;
}

// The shares of a region of the plane, or volume, whose views are runs at from[g], in `stage`.
template <class T, int kOp>
void share_region(const Problem& p, int64_t plane, Bits<T>* stage, const Bits<T>* const* from, const Place<Bits<T>>& grad,
                  const Place<Bits<T>>& second, const Region& r, const Ahead<Bits<T>>& ahead) {
  typedef Bits<T> E;
  const int64_t elements = elements_of(p, r);
  E* const beside = kOp == kVariance ? nullptr : scratch<E>(4, 2 * elements);
  const E* const first = kOp == kVariance ? nullptr : run_of<E>(p, grad, r, beside);
  const E* const other = second.data ? run_of<E>(p, second, r, beside + elements) : nullptr;
  share_run<T, kOp>(p.views, numbers<T>(stage), from, numbers<T>(first), numbers<T>(other), Acc<T>(weight(p, 0, plane)), elements, ahead);
}

// Every view of a tile as a run, where it is or in `stage`.
template <class E>
inline const E** runs_of_views(const Problem& p, const Views<E>& views, const Tile& tile, E* stage) {
  const Region& r = tile.region;
  const int64_t elements = elements_of(p, r);
  const E** const from = scratch<const E*>(0, p.views);
  for (int g = 0; g < p.views; ++g) {
    E* const own = stage + g * elements;
    const Source<E> plane = source<E>(p, tile.plane, g);
    const bool minus = negates(p, tile.plane, g);
    from[g] = (minus ? negated_band<E>(p, plane, views[g], r, own) : view_band<E>(p, plane, views[g], r, own, true)).data;
  }
  return from;
}

inline bool turns_planes(const Problem& p) {
  for (int g = 0; g < p.views; ++g)
    if (p.code(g) & kTranspose) return true;
  return false;
}

// The view that undoes another: of an image (grid_index.h), or of a volume (boxes.h).
inline uint8_t inverse_code(unsigned code, bool volume) {
  if (!volume) return uint8_t(code & kTranspose ? kTranspose | (code & kReverseH) << 1 | (code & kReverseW) >> 1 : code);
  const unsigned order[3] = {code & 3, code >> 2 & 3, 3 - (code & 3) - (code >> 2 & 3)};
  unsigned inverse = 0;
  for (unsigned k = 0; k < 3; ++k) {
    if (order[k] < 2) inverse |= k << 2 * order[k];
    inverse |= (code >> (4 + order[k]) & 1) << (4 + k);
  }
  return uint8_t(inverse);
}

// The call that moves shares back, from dense planes of the result.
struct Returned {
  Problem p;
  std::vector<uint8_t> codes;

  explicit Returned(const Problem& call) : p(call) {
    if (!p.permutes())
      for (int g = 0; g < p.views; ++g) codes.push_back(inverse_code(p.code(g), p.volumes));
    if (!p.permutes()) p.codes = codes.data();
    std::swap(p.D, p.Do), std::swap(p.H, p.Ho), std::swap(p.W, p.Wo);
    p.in = Side();
    p.in.row = p.W, p.in.col = 1;
  }
};

// A dense region of a permuted view to the entries that it shows.
template <class E>
inline void return_moved(const Problem& p, const Place<E>& place, const E* from, const Moves& m, const Region& r) {
  const int64_t first = p.move_rows ? r.i0 : r.j0, last = p.move_rows ? r.i1 : r.j1, length = r.pixels(), step = p.move_rows ? length : 1;
  const int64_t plane = r.rows() * length;
  const MovedRange range(m, first, last);
  const auto part = [&](int64_t begin, int64_t end) {
    return p.move_rows ? Region{r.planes, begin, end, r.j0, r.j1} : Region{r.planes, r.i0, r.i1, begin, end};
  };
  const auto put_entries = [&](int64_t begin, int64_t end, int64_t to) {
    if (begin < end) put<E>(p, place, Band<E>{from + (begin - first) * step, plane, length}, part(to, to + end - begin), false);
  };
  int64_t next = first;
  for (int64_t k = range.lo; k < range.hi; ++k) {  // what stays, between the entries that move
    put_entries(next, m.positions[k], next);
    next = m.positions[k] + 1;
  }
  put_entries(next, last, next);
  for (int64_t k = range.lo; k < range.hi; ++k) {
    const int64_t position = m.positions[k], source = m.sources[k];
    if (p.move_rows) {
      put_entries(position, position + 1, source);
    } else {
      for (int64_t n = 0; n < r.planes; ++n) place.data[n * place.plane + source * place.col] = from[n * plane + position - first];
    }
  }
}

// Tiles of a plane's region: bands, or where views turn squares, of which every view has whole cache lines.
template <class F>
inline void for_tiles(const Problem& p, const Region& whole, bool turns, int64_t size, const F& body) {
  if (whole.planes > 1 || !turns || p.V > 1) return for_bands(p, whole, p.views * size, body);
  const int64_t edge = kSideBytes / size;
  const auto cut = [&](int64_t first, int64_t last, const auto& part) {
    const int64_t parts = std::max<int64_t>(1, (last - first) / edge);
    for (int64_t k = 0; k < parts; ++k) part(first + k * edge, k + 1 == parts ? last : first + (k + 1) * edge);
  };
  cut(whole.i0, whole.i1, [&](int64_t i0, int64_t i1) {
    cut(whole.j0, whole.j1, [&](int64_t j0, int64_t j1) { body(Region{whole.planes, i0, i1, j0, j1}); });
  });
}

// body(tile, the one behind it or null) over the tiles of a unit.
template <class F>
inline void for_unit_tiles(const Problem& p, const Units& u, int64_t n, bool turns, int64_t size, const F& body) {
  static thread_local std::vector<Tile> tiles;
  tiles.clear();
  const auto list = [&](int64_t unit) {
    const Unit t = unit_at(u, unit, p.Ho, p.Wo);
    for_tiles(p, t.region(), turns, size, [&](const Region& r) { tiles.push_back({t.plane, r}); });
  };
  list(n);
  const size_t count = tiles.size();
  if (n + 1 < u.count) list(n + 1);  // whose first one follows the last one
  for (size_t k = 0; k < count; ++k) body(tiles[k], k + 1 < tiles.size() ? &tiles[k + 1] : nullptr);
}

template <class T, int kOp>
void plane_shares(const Problem& p) {
  typedef Bits<T> E;
  const Returned back(p);
  const Views<E> views(p), undo(back.p);
  const int64_t work = p.views * p.planes() * p.Ho * p.Wo * p.V;
  const Units u(p, p.Ho, p.Wo);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(T)));
  const bool turns = turns_planes(p);
  for_units(p, u, work, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.Ho, p.Wo);
    const Place<E> grad(p, p.other, t.plane, 0), second(p, p.spread, t.plane, 0);
    for_unit_tiles(p, u, n, turns, sizeof(E), [&](const Tile& tile, const Tile* next) {
      const Region& r = tile.region;
      const int64_t elements = elements_of(p, r), row = r.pixels() * p.V;
      E* const stage = scratch<E>(3, elements * p.views);
      share_region<T, kOp>(p, t.plane, stage, runs_of_views<E>(p, views, tile, stage), grad, second, r, Ahead<E>(p, next));
      for (int g = 0; g < p.views; ++g) {
        const Place<E> place(p, p.out, t.plane, g);
        const E* const shares = stage + g * elements;
        if (p.permutes()) {
          return_moved<E>(p, place, shares, p.moves(g), r);
          continue;
        }
        const Region shown = region_of(back.p, back.p.code(g), Unit{0, r.planes, r.i0, r.i1, r.j0, r.j1});
        move_view<E>(back.p, place, Source<E>{shares, r.rows() * row, row, p.V, r.i0, r.j0}, undo[g], shown, streaming, false);
      }
    });
  });
}

}  // namespace EQK_ISA
}  // namespace equikern
