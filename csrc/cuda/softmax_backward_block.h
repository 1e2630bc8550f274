// What one thread of the gradient of a mean of softmaxes does between barriers. A block stages a row of one view and the
// row of the mean's gradient, each read once: neighbouring blocks have the other views, and find the latter in the L2
// cache. Where views move entries, the gradient's are put where the view has them: then it is as if none had moved. The
// order of a sum depends on the rows' length and on where the three start within 16 bytes alone.
#pragma once

#include "softmax_block.h"

namespace equikern {
namespace cuda {

template <class T, bool kLog>
struct SoftmaxMeanBackward {
  using A = Accumulator<T>;
  struct State {
    const T *y, *grad;  // the rows
    T* out;
    int y_run, grad_run;  // the bytes of shared memory where they are staged
    Shift<A> at;          // of the view's probabilities, exponentials times `factor`
    A factor;
    int32_t view;
  };
  static constexpr int kPhases = 5;

  template <int kPhase>
  static EQK_HD void phase(const RowPlan& p, int64_t block, int thread, unsigned char* shared, State& row) {
    A* lanes = reinterpret_cast<A*>(shared);
    A* folded = lanes + kThreads;
    if constexpr (kPhase == 0) {
      start(p, block, row);
      stage(row.y, p.V, thread, shared + row.y_run);
      if (p.positions || !p.sources) stage(row.grad, p.V, thread, shared + row.grad_run);
      await_copies();
    } else if constexpr (kPhase == 1) {
      const int count = p.positions ? p.moved : p.sources ? p.V : 0;
      const int32_t* sources = p.sources + int64_t{row.view} * count;
      T* grad = reinterpret_cast<T*>(shared + row.grad_run);
      for (int k = thread; k < count; k += kThreads) grad[sources[k]] = row.grad[p.positions ? p.positions[k] : k];
    } else if constexpr (kPhase == 2) {
      lanes[thread] = products(p, row, thread, shared);
    } else if constexpr (kPhase == 3) {
      if (thread < kWarp) folded[thread] = sum_of(lanes + thread, kThreads / kWarp, kWarp);
    } else {
      write(p, row, thread, shared, sum_of(folded, kWarp, 1) * row.factor);
    }
  }

  static EQK_HD void start(const RowPlan& p, int64_t block, State& row) {
    int64_t rest = quotient(block, p.n_views);
    row.view = static_cast<int32_t>(block - rest * p.n_views);
    const A lse = static_cast<const A*>(p.lse)[row.view * p.rows + rest];
    row.at = SoftmaxMean<T, kLog>::scale_of(lse);
    row.factor = factor_of(lse, row.at);
    int64_t y = row.view * p.y.view, out = row.view * p.out.view, grad = 0;
    for (int d = p.n_lead - 1; d >= 0; --d) {
      const int64_t above = d > 0 ? quotient(rest, p.lead[d]) : 0, k = rest - above * p.lead[d];
      y += k * p.y.lead[d];
      out += k * p.out.lead[d];
      grad += k * p.grad.lead[d];
      rest = above;
    }
    row.y = reinterpret_cast<const T*>(p.y.data) + y;
    row.out = reinterpret_cast<T*>(p.out.data) + out;
    row.grad = reinterpret_cast<const T*>(p.grad.data) + grad;
    row.y_run = p.rows_start + misalignment(row.y) * int(sizeof(T));
    row.grad_run = p.rows_start + p.run_bytes + misalignment(row.grad) * int(sizeof(T));
  }

  static EQK_HD void stage(const T* row, int V, int thread, unsigned char* shared) {
    const RowParts<T> parts(row, V);
    T* to = reinterpret_cast<T*>(shared);
    for (int v = thread; v < parts.vectors; v += kThreads)
      copy_vector(row + parts.head + v * kLanes<T>, to + parts.head + v * kLanes<T>);
    const int single = parts.single(thread);
    if (kLanes<T> > 1 && single < V) to[single] = row[single];
  }

  static EQK_HD A sum_of(const A* from, int count, int step) {
    A sum = 0;
    for (int k = 0; k < count; ++k) sum += from[k * step];
    return sum;
  }

  // Whether vectors of all three rows lie alike.
  static EQK_HD bool alike(const State& row) {
    return misalignment(row.y) == misalignment(row.out) && misalignment(row.grad) == misalignment(row.out);
  }

  // What an entry gives to the sum Σ p · ∂L, but for the factor; of logarithms to Σ ∂L.
  static EQK_HD A with_entry(A sum, A v, A d, const State& row) {
    return kLog ? sum + d : std::fma(relative(v, row.at), d, sum);
  }

  static EQK_HD A products(const RowPlan& p, const State& row, int thread, const unsigned char* shared) {
    const T* y = reinterpret_cast<const T*>(shared + row.y_run);
    const T* grad = reinterpret_cast<const T*>(shared + row.grad_run);
    A sum = 0;
    if (!alike(row)) {
      for (int k = thread; k < p.V; k += kThreads) sum = with_entry(sum, widen(y[k]), widen(grad[k]), row);
      return sum;
    }
    const RowParts<T> parts(row.y, p.V);
    const int single = parts.single(thread), head = parts.head * int(sizeof(T));
    if (kLanes<T> > 1 && single < p.V) sum = with_entry(sum, widen(y[single]), widen(grad[single]), row);
    A sums[kLanes<T>] = {};
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int v = thread; v < parts.vectors; v += kThreads) {
      A values[kLanes<T>], slopes[kLanes<T>];
      if (!kLog) wide_at<T>(shared + row.y_run + head + v * 16, values);
      wide_at<T>(shared + row.grad_run + head + v * 16, slopes);
      for (int k = 0; k < kLanes<T>; ++k) sums[k] = with_entry(sums[k], values[k], slopes[k], row);
    }
    for (int k = 0; k < kLanes<T>; ++k) sum += sums[k];
    return sum;
  }

  // ∂L/∂logit: see `slope` of backends/triton/softmaxes.py.
  static EQK_HD A slope(A v, A d, const State& row, A share, A total) {
    const A e = relative(v, row.at);
    return kLog ? std::fma(-e, total, d) * share : e * (row.factor * share) * (d - total);
  }

  static EQK_HD void write(const RowPlan& p, const State& row, int thread, const unsigned char* shared, A total) {
    const T* y = reinterpret_cast<const T*>(shared + row.y_run);
    const T* grad = reinterpret_cast<const T*>(shared + row.grad_run);
    const A share = A(1) / p.n_views;
    if (!alike(row)) {
      for (int k = thread; k < p.V; k += kThreads)
        narrow(slope(widen(y[k]), widen(grad[k]), row, share, total), row.out[k]);
      return;
    }
    const RowParts<T> parts(row.out, p.V);
    const int single = parts.single(thread), head = parts.head * int(sizeof(T));
    Bytes16* to = reinterpret_cast<Bytes16*>(row.out + parts.head);
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int v = thread; v < parts.vectors; v += kThreads) {
      A values[kLanes<T>], slopes[kLanes<T>];
      wide_at<T>(shared + row.y_run + head + v * 16, values);
      wide_at<T>(shared + row.grad_run + head + v * 16, slopes);
      for (int k = 0; k < kLanes<T>; ++k) values[k] = slope(values[k], slopes[k], row, share, total);
      store_group(to + v, narrow_vector<T>(values));
    }
    if (kLanes<T> > 1 && single < p.V)
      narrow(slope(widen(y[single]), widen(grad[single]), row, share, total), row.out[single]);
  }
};

}  // namespace cuda
}  // namespace equikern
