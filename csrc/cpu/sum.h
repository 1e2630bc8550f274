// Weighted sums of views, fold first and transpose once: the rows of all views that turn the plane are summed in a
// scratch plane, which is then transposed band by band while the rows of the other views are added. Mirrored rows are
// summed forwards and mirrored once. So every view is read as sequential rows, whatever the sizes do to the cache.
#pragma once

#include "units.h"

namespace equikern {
namespace EQK_ISA {

constexpr int kMostSummed = 64;  // views

// Rows to be summed: line l of view k begins at at[k] + l·step[k].
template <class T>
struct Lines {
  const T* at[kMostSummed];
  int64_t step[kMostSummed];
  int64_t ahead[kMostSummed];  // what is fetched meanwhile, in elements from what is read; 0 leaves it to the caller's jump
  Acc<T> weight[kMostSummed];
  int count = 0;

  void add(const T* first, int64_t line_step, Acc<T> w, int64_t fetched = 0) {
    at[count] = first, step[count] = line_step, ahead[count] = fetched, weight[count++] = w;
  }
};

// Where group k of kLanes elements begins in a row of n; the last one overlaps its neighbour.
template <class C>
inline int64_t group_start(int64_t k, int64_t n) {
  return std::min(k * C::kLanes, n - C::kLanes);
}

template <class C, bool kWeighted, class T>
EQK_INLINE void join(C& sum, bool first, const T* from, Acc<T> w) {
  C v = C::from(from);
  if (kWeighted) v = times(v, w);
  sum = first ? v : sum + v;
}

// put(line, group, first element, Σ w·forward + mirror(Σ w·backward)) for lines of n elements. What the loops need is
// copied into locals, and `put` holds values: stores could change anything that is reached through a reference.
template <class C, int kForward, int kBackward, bool kWeighted, class T, class Put>
inline void sum_counted(const Lines<T>& f, const Lines<T>& b, int64_t first, int64_t last, int64_t n, int64_t jump,
                        const Put put) {
  constexpr int kMost = kForward >= 0 ? std::max(1, std::max(kForward, kBackward)) : kMostSummed;
  const int nf = kForward >= 0 ? kForward : f.count, nb = kBackward >= 0 ? kBackward : b.count;
  const int64_t rows_ahead = kAheadBytes / (n * int64_t(sizeof(T))) + 1;
  const T *forward[kMost], *backward[kMost];
  int64_t forward_step[kMost], backward_step[kMost], forward_ahead[kMost], backward_ahead[kMost];
  Acc<T> forward_weight[kMost], backward_weight[kMost];
#pragma GCC unroll 2
  for (int k = 0; k < nf; ++k) {
    forward_step[k] = f.step[k], forward_weight[k] = f.weight[k];
    forward[k] = f.at[k] + first * f.step[k];
    forward_ahead[k] = f.ahead[k] ? f.ahead[k] : jump ? jump : rows_ahead * f.step[k];
  }
#pragma GCC unroll 2
  for (int k = 0; k < nb; ++k) {
    backward_step[k] = b.step[k], backward_weight[k] = b.weight[k];
    backward[k] = b.at[k] + first * b.step[k] + n - C::kLanes;
    backward_ahead[k] = b.ahead[k] ? b.ahead[k] : jump ? jump : rows_ahead * b.step[k];
  }
  for (int64_t line = first; line < last; ++line) {
    for (int64_t group = 0, next = 0; next < n; ++group) {
      const int64_t j = std::min(next, n - C::kLanes);  // the last group overlaps its neighbour
      next = j + C::kLanes;
      C sum = {}, mirrored = {};
#pragma GCC unroll 2
      for (int k = 0; k < nf; ++k) {
        __builtin_prefetch(forward[k] + j + forward_ahead[k], 0, 2);
        join<C, kWeighted>(sum, k == 0, forward[k] + j, forward_weight[k]);
      }
#pragma GCC unroll 2
      for (int k = 0; k < nb; ++k) {
        __builtin_prefetch(backward[k] - j + backward_ahead[k], 0, 2);
        join<C, kWeighted>(mirrored, k == 0, backward[k] - j, backward_weight[k]);
      }
      if (nb) sum = nf ? sum + mirrored.reversed() : mirrored.reversed();
      put(line, group, j, sum);
    }
#pragma GCC unroll 2
    for (int k = 0; k < nf; ++k) forward[k] += forward_step[k];
#pragma GCC unroll 2
    for (int k = 0; k < nb; ++k) backward[k] += backward_step[k];
  }
}

template <class C, bool kWeighted, class T, class Put>
inline void sum_lines(const Lines<T>& f, const Lines<T>& b, int64_t first, int64_t last, int64_t n, int64_t jump, const Put& put) {
  if (f.count == 1 && b.count == 1) return sum_counted<C, 1, 1, kWeighted>(f, b, first, last, n, jump, put);
  if (f.count == 2 && b.count == 2) return sum_counted<C, 2, 2, kWeighted>(f, b, first, last, n, jump, put);
  if (f.count == 2 && b.count == 0) return sum_counted<C, 2, 0, kWeighted>(f, b, first, last, n, jump, put);
  if (f.count == 3 && b.count == 0) return sum_counted<C, 3, 0, kWeighted>(f, b, first, last, n, jump, put);
  sum_counted<C, -1, -1, kWeighted>(f, b, first, last, n, jump, put);
}

// A block of one plane: the views' rows as lines of the result (straight) or of its transpose (turned).
template <class T>
struct Fold {
  Lines<T> straight, mirrored, turned, turned_mirrored;

  Fold(const Problem& p, const Unit& t, int64_t plane) {
    const T *const own = at<T>(p, p.in, plane), *const beside = at<T>(p, p.source(p.views - 1), plane);
    for (int g = 0; g < p.views; ++g) {
      const unsigned code = p.code(g);
      const Side& side = p.source(g);
      const int64_t row = side.row;
      const T* from = (g < p.added ? own : beside) + view_offset(p, side, plane, g);
      const bool turn = code & kTranspose, mirror = code & kReverseW;
      const int64_t l0 = turn ? t.c0 : t.r0, e0 = turn ? t.r0 : t.c0, e1 = turn ? t.r1 : t.c1;
      from += (code & kReverseH ? p.H - 1 - l0 : l0) * row + (mirror ? p.W - e1 : e0);
      Lines<T>& lines = turn ? (mirror ? turned_mirrored : turned) : (mirror ? mirrored : straight);
      lines.add(from, code & kReverseH ? -row : row, Acc<T>(weight(p, g, plane)));
    }
  }
};

// The scratch plane: for every column of the block a row of groups, each in the order of chunk C.
template <class C>
struct Turned {
  typedef typename C::A A;
  int64_t rows, cols, stride;
  A* data;

  Turned(int64_t block_rows, int64_t block_cols) : rows(block_rows), cols(block_cols) {
    stride = (rows + C::kLanes - 1) / C::kLanes * C::kLanes;
    if (stride * sizeof(A) % 512 == 0) stride += C::kLanes;  // rows a power of two apart would share cache sets
    data = scratch<A>(1, cols * stride);
  }
  // Group k of rows as rows of the result.
  void band(int64_t k, A* base, int64_t base_stride) const {
    constexpr int kParts = C::kParts, L = C::kLanes / kParts;
    for (int64_t j = 0, group = 0; j < cols; j += C::kLanes, ++group) {
      const A* from = data + group_start<C>(group, cols) * stride + k * C::kLanes;
      // Even and odd elements lie apart within a chunk, on both sides.
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
#pragma GCC unroll 2
        for (int q = 0; q < kParts; ++q) {
          transpose<Bits<A>>(reinterpret_cast<Bits<A>*>(base + i * base_stride + group * C::kLanes + q * L), kParts * base_stride,
                             reinterpret_cast<const Bits<A>*>(from + q * stride + i * L), kParts * stride, L, L);
        }
      }
    }
  }
};

template <class T, class C, bool kWeighted>
void sum_block(const Problem& p, const Unit& t, int64_t plane, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const int64_t rows = t.r1 - t.r0, cols = t.c1 - t.c0;
  const A scale = A(p.scale);
  const Fold<T> fold(p, t, plane);
  const int64_t jump = p.views * rows * cols * int64_t(sizeof(T)) <= kSmallPlaneBytes ? next_plane(p, p.in) : 0;
  const bool turns = fold.turned.count || fold.turned_mirrored.count;
  const Place<E> place(p, p.out, plane, 0);
  const bool direct = !streaming && place.rows_fit(p);
  int64_t band_rows = std::max<int64_t>(C::kLanes, kBand / (cols * int64_t(sizeof(T)))), base_stride = 0;
  A* base = nullptr;
  if (turns) {
    const Turned<C> turned(rows, cols);
    sum_lines<C, kWeighted>(fold.turned, fold.turned_mirrored, 0, cols, rows, jump,
                            [to = turned.data, stride = turned.stride](int64_t line, int64_t group, int64_t, const C& sum) {
                              keep(to + line * stride + group * C::kLanes, sum);
                            });
    band_rows = C::kLanes;
    base_stride = (cols + C::kLanes - 1) / C::kLanes * C::kLanes;
    base = scratch<A>(2, band_rows * base_stride);
  }
  for (int64_t i0 = 0; i0 < rows; i0 += band_rows) {
    const int64_t i1 = std::min(i0 + band_rows, rows);
    const A* first = base;
    if (turns) {
      const Turned<C> turned(rows, cols);
      turned.band(i0 / C::kLanes, base, base_stride);
      first = base - group_start<C>(i0 / C::kLanes, rows) * base_stride;
    }
    const Region r{1, t.r0 + i0, t.r0 + i1, t.c0, t.c1};
    T* stage = numbers<T>(direct ? place.at_region(r) : scratch<E>(0, (i1 - i0) * cols));
    const int64_t stage_row = direct ? place.row : cols;
    T* const to = stage - i0 * stage_row;
    if (turns)
      sum_lines<C, kWeighted>(fold.straight, fold.mirrored, i0, i1, cols, jump, [=](int64_t i, int64_t group, int64_t j, const C& sum) {
        times(sum + fetch<C>(first + i * base_stride + group * C::kLanes), scale).to(to + i * stage_row + j);
      });
    else
      sum_lines<C, kWeighted>(fold.straight, fold.mirrored, i0, i1, cols, jump,
                              [=](int64_t i, int64_t, int64_t j, const C& sum) { times(sum, scale).to(to + i * stage_row + j); });
    if (!direct) put<E>(p, place, dense_band<E>(p, r, reinterpret_cast<E*>(stage)), r, streaming);
  }
}

template <class T, class C>
void sum_planes(const Problem& p, const Units& u, bool streaming) {
  for_units(p, u, p.planes() * p.Ho * p.Wo * p.views, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.Ho, p.Wo);
    for (int64_t k = 0; k < t.planes; ++k)
      p.weights || p.signs ? sum_block<T, C, true>(p, t, t.plane + k, streaming) : sum_block<T, C, false>(p, t, t.plane + k, streaming);
  });
}

// Whether the sum is done here: contiguous rows, at least as long as the shortest chunk.
template <class T>
bool sum_typed(const Problem& p, const Units& u, bool streaming) {
  if (p.V != 1 || p.in.col != 1 || p.source(p.views - 1).col != 1 || p.views > kMostSummed) return false;
  bool turns = false;
  for (int g = 0; g < p.views; ++g) turns |= p.code(g) & kTranspose;
  const int64_t n = turns ? std::min(p.Ho, p.Wo) : p.Wo;
  constexpr int L = kLanesOf<T>;
  if (n >= Chunk<T, L>::kLanes) return sum_planes<T, Chunk<T, L>>(p, u, streaming), true;
  if constexpr (L >= 4)
    if (n >= Chunk<T, L / 2>::kLanes) return sum_planes<T, Chunk<T, L / 2>>(p, u, streaming), true;
  if constexpr (L >= 8)
    if (n >= Chunk<T, L / 4>::kLanes) return sum_planes<T, Chunk<T, L / 4>>(p, u, streaming), true;
  return false;
}

}  // namespace EQK_ISA
}  // namespace equikern
