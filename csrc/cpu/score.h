// Scores of rows of logits, and the view of every row with the best one.
#pragma once

#include <vector>

#include "rows.h"

namespace equikern {
namespace EQK_ISA {

// The largest of the numbers, NaN if one is.
template <class T>
inline Acc<T> largest(const T* row, int64_t n) {
  typedef Acc<T> A;
  constexpr int L = kLanesOf<T>;
  typedef Vec<A, L> V;
  V best = V{} - kInfinity<A>;
  for_vectors<L>(n, [&](int64_t i, auto count) {
    const V x = lift<T, L>(row + i, count, -kInfinity<A>);
    best = (x > best) | (x != x) ? x : best;  // a NaN stays: nothing is greater
  });
  A most = best[0];
  for (int l = 1; l < L; ++l)
    if (best[l] > most || std::isnan(best[l])) most = best[l];
  return most;
}

// The largest and second largest of the numbers, equal ones counted apart.
template <class T>
inline void two_largest(const T* row, int64_t n, Acc<T>& first, Acc<T>& second) {
  typedef Acc<T> A;
  constexpr int L = kLanesOf<T>;
  typedef Vec<A, L> V;
  V a = V{} - kInfinity<A>, b = a;
  for_vectors<L>(n, [&](int64_t i, auto count) {
    const V x = lift<T, L>(row + i, count, -kInfinity<A>), low = x > a ? a : x;
    a = x > a ? x : a;
    b = low > b ? low : b;
  });
  first = second = -kInfinity<A>;
  for (int l = 0; l < 2 * L; ++l) {
    const A x = l < L ? a[l] : b[l - L];
    if (x > first)
      second = first, first = x;
    else if (x > second)
      second = x;
  }
}

// The loss of one row. Compiled once for all kernels: a choice must not depend on which of them found the scores.
template <class T>
__attribute__((noinline)) Acc<T> row_score(const T* row, int64_t n, int kind) {
  typedef Acc<T> A;
  if (kind == kLargest) return -largest(row, n);
  const Spread<A> s = kind == kEntropy ? sums_of<kMoments>(row, n).spread() : sums_of<kRest>(row, n).spread();
  const A unsure = std::log1p(s.rest);  // −log of the largest probability
  if (kind == kMaxProb) return unsure;
  if (kind == kEntropy) return unsure - s.moment / (A(1) + s.rest);
  A first, second;
  two_largest(row, n, first, second);
  const A gap = second - first;  // p_2nd / p_1st in logarithm, of which both ends keep their digits
  return unsure - (gap < A(-1) ? std::log1p(-std::exp(gap)) : std::log(-std::expm1(gap)));
}

// View g of row r in one piece, where it is or copied.
template <class T>
inline const T* view_row(const RowProblem& p, int64_t r, int g) {
  return RowViews<T>::piece(p, p.in, r, g, scratch<T>(3, RowViews<T>::is_run(p, p.in) ? 0 : p.W));
}

template <class T>
void score_typed(const RowProblem& p) {
  for_rows(p, [&](int64_t r) { static_cast<Acc<T>*>(p.numbers)[r] = row_score(view_row<T>(p, r, 0), p.W, p.score); });
}

// View g of row r, transformed, into the result: bits are moved, nothing is computed.
template <class T>
inline void put_view(const RowProblem& p, int64_t r, int g, bool streaming) {
  const T* const row = view_row<T>(p, r, g);
  T* const stage = scratch<T>(4, kRowBlock);
  T* const out = at<T>(p, p.out, r);
  for_blocks(p.W, [&](int64_t j, int64_t length) {
    const T* const from = moved_row(row, p.moves(g), j, length, stage);
    if (!RowViews<T>::is_run(p, p.out))
      for (int64_t i = 0; i < length; ++i) out[(j + i) * p.out.col] = from[i];
    else if (streaming)
      stream(reinterpret_cast<char*>(out + j), reinterpret_cast<const char*>(from), length * sizeof(T));
    else
      std::memcpy(static_cast<void*>(out + j), from, length * sizeof(T));
  });
}

// All views of a row are scored, and the best one is written while it is in the cache. Where there are fewer rows than
// threads, views are scored side by side first.
template <class T>
void score_select_typed(const RowProblem& p) {
  typedef Acc<T> A;
  const int64_t rows = p.planes(), work = rows * p.W * p.views;
  const int views = p.views;
  const bool streaming = past_caches((views + 1) * rows * p.W * int64_t(sizeof(T)));
  const auto choose = [&](int64_t r, const auto& score_of) {
    int best = 0;
    A least = score_of(0);
    for (int g = 1; g < views; ++g) {
      const A s = score_of(g);
      if (is_better(s, least, p.minimum)) best = g, least = s;
    }
    p.index[r] = best;
    put_view<T>(p, r, best, streaming);
  };
  if (rows >= p.threads) {
    for_units(p, rows, work, [&](int64_t r) { choose(r, [&](int g) { return row_score(view_row<T>(p, r, g), p.W, p.score); }); });
    return;
  }
  std::vector<A> scores(rows * views);
  for_units(p, rows * views, work,
            [&](int64_t n) { scores[n] = row_score(view_row<T>(p, n / views, int(n % views)), p.W, p.score); });
  for_units(p, rows, work, [&](int64_t r) { choose(r, [&](int g) { return scores[r * views + g]; }); });
}

}  // namespace EQK_ISA
}  // namespace equikern
