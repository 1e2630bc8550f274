// Means of softmaxes with their gradient. Every row is read from memory once: its views stay in L2 between the pass that
// finds the largest numbers and sums of exponentials and the pass that writes.
#pragma once

#include "rows.h"

namespace equikern {
namespace EQK_ISA {

template <class T, bool kProbs>
void softmax_mean_space(const RowProblem& p) {
  typedef Acc<T> A;
  constexpr int L = kLanesOf<T>;
  typedef Vec<A, L> V;
  const int64_t n = p.W, rows = p.planes();
  const int views = p.views;
  const A share = A(1) / A(views);
  const bool streaming = past_caches((views + 1) * rows * n * int64_t(sizeof(T)));
  for_rows(p, [&](int64_t r) {
    const RowViews<T> y(p, r);
    Stats<A>* const stats = scratch<Stats<A>>(5, views);
    for (int g = 0; g < views; ++g) {
      stats[g] = stats_of(y.rows[g], n);
      static_cast<A*>(p.numbers)[g * rows + r] = stats[g].top + stats[g].log_sum;
      // The views' share goes with the row's factor: thirds of a sum would round once more, and sums larger than 1 coarser.
      stats[g].inverse = A(double(stats[g].inverse) / views);
    }
    const RowOut<T> out(p, p.out, r, 0, streaming);
    for_blocks(n, [&](int64_t j, int64_t length) {
      const T* const* from = y.moved(p, j, length);
      for_vectors<L>(length, [&](int64_t i, auto count) {
        V sum = {};
        for (int g = 0; g < views; ++g) {
          const V d = lift<T, L>(from[g] + i, count, 0) - stats[g].top;
          sum += kProbs ? exp_lanes<A, L>(d) * stats[g].inverse : d - stats[g].log_sum;
        }
        out.put(j, i, kProbs ? sum : sum * share, count);
      });
      out.end(j, length);
    });
  });
}

template <class T>
void softmax_mean_typed(const RowProblem& p) {
  p.space == kProbs ? softmax_mean_space<T, true>(p) : softmax_mean_space<T, false>(p);
}

// Σ over a row, in double from block to block.
template <class A, int L, class Get>
inline double sum_blocks(int64_t n, const Get& get) {
  double total = 0;
  for_blocks(n, [&](int64_t j, int64_t length) {
    Vec<A, L> part = {};
    for_vectors<L>(length, [&](int64_t i, auto count) { part += get(j + i, count); });
    total += double(sum_of<A, L>(part));
  });
  return total;
}

template <class T>
void softmax_mean_backward_typed(const RowProblem& p) {
  typedef Acc<T> A;
  constexpr int L = kLanesOf<T>;
  typedef Vec<A, L> V;
  const int64_t n = p.W, rows = p.planes();
  const A share = A(1) / A(p.views);
  const bool probs = p.space == kProbs, streaming = past_caches((2 * p.views + 1) * rows * n * int64_t(sizeof(T)));
  for_rows(p, [&](int64_t r) {
    const RowViews<T> y(p, r);
    const T* const grad = RowViews<T>::piece(p, p.other, r, 0, scratch<T>(6, RowViews<T>::is_run(p, p.other) ? 0 : n));
    T* const stage = scratch<T>(4, kRowBlock);
    const A total = probs ? A(0) : A(sum_blocks<A, L>(n, [&](int64_t i, auto count) { return lift<T, L>(grad + i, count, 0); }));
    for (int g = 0; g < p.views; ++g) {
      const T* const row = y.rows[g];
      const Moves back = p.inverse(g);
      const A lse = static_cast<const A*>(p.numbers)[g * rows + r];
      A mean = 0, inverse = 1;
      if (probs) {  // Σ p · gradient, and Σ p, which is not exactly 1 where lse is large
        double products = 0, sum = 0;
        for_blocks(n, [&](int64_t j, int64_t length) {
          const T* const spread = moved_row(grad, back, j, length, stage);
          V part = {}, part_sum = {};
          for_vectors<L>(length, [&](int64_t i, auto count) {
            const V e = exp_lanes<A, L>(lift<T, L>(row + j + i, count, -kInfinity<A>) - lse);
            part += e * lift<T, L>(spread + i, count, 0);
            part_sum += e;
          });
          products += double(sum_of<A, L>(part)), sum += double(sum_of<A, L>(part_sum));
        });
        mean = A(products / sum), inverse = A(1 / sum);
      }
      const RowOut<T> out(p, p.out, r, g, streaming);
      for_blocks(n, [&](int64_t j, int64_t length) {
        const T* const spread = moved_row(grad, back, j, length, stage);
        for_vectors<L>(length, [&](int64_t i, auto count) {
          const V e = exp_lanes<A, L>(lift<T, L>(row + j + i, count, 0) - lse), up = lift<T, L>(spread + i, count, 0);
          out.put(j, i, (probs ? e * inverse * (up - mean) : up - e * total) * share, count);
        });
        out.end(j, length);
      });
    }
  });
}

}  // namespace EQK_ISA
}  // namespace equikern
