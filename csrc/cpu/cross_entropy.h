// Cross-entropies of the mean prediction and their gradient in one pass over the logits: each row's views stay in L2.
// With ε the smoothing and w the class weights, a row's loss is −(1 − ε) w[t] log q[t] − ε/V Σ_v w[v] log q[v] + z w[t] Z²,
// where Z² is the square of the mean logits' log Σ exp, or the mean of the views' squares.
#pragma once

#include "rows.h"

namespace equikern {
namespace EQK_ISA {

// kWeighed: with class weights beside a smoothing. Without one the target's is a factor of the row.
template <class T, bool kWeighed>
struct Row {
  typedef Acc<T> A;
  static constexpr int L = kLanesOf<T>;
  typedef Vec<A, L> V;

  const RowProblem& p;
  const int64_t r, t;  // the row's number and its target
  const bool streaming;
  const RowViews<T> y;
  const int64_t n = p.W;
  const A share = A(1) / A(p.views);  // of a view
  const A spread = A(p.smoothing) / A(n), kept = A(1) - A(p.smoothing);
  const A* const weights = static_cast<const A*>(p.class_weights);
  const A row_weight = kWeighed || !weights ? A(1) : weights[t], factor = A(p.factor) * row_weight;
  const double of_target = kWeighed ? double(weights[t]) : 1;
  const double all = kWeighed ? double(kept) * of_target + double(spread) * p.class_weight_sum : 1;  // Σ_v of what is wanted

  Row(const RowProblem& problem, int64_t row, int64_t target, bool past) : p(problem), r(row), t(target), streaming(past), y(problem, row) {
    if (p.softcap != 0) cap();
  }

  // The views' logits become c · tanh(logits / c), in scratch memory.
  void cap() const {
    T* const capped = scratch<T>(3, p.views * n);  // where copies of logits that lie apart are already
    const A c = A(p.softcap), inverse = A(1 / p.softcap);
    for (int g = 0; g < p.views; ++g) {
      T* const to = capped + g * n;
      for_vectors<L>(n, [from = y.rows[g], to, c, inverse](int64_t i, auto count) {
        lower<T, L>(to + i, tanh_lanes<A, L>(lift<T, L>(from + i, count, 0) * inverse) * c, count);
      });
      y.rows[g] = to;
    }
  }
  // The gradient in the capped logits, which is written, becomes that in the logits.
  void uncap() const {
    const RowViews<T> logits(p, r);
    const A inverse = A(1 / p.softcap);
    for (int g = 0; g < p.views; ++g) {
      const RowOut<T> out = grad(g);
      const T* const from = logits.rows[g];
      const auto slope = [inverse](auto x) { return tanh_slope_lanes<A, L>(x * inverse); };
      if (out.step == 1) {
        for_vectors<L>(n, [to = out.data, from, slope](int64_t i, auto count) {
          lower<T, L>(to + i, lift<T, L>(to + i, count, 0) * slope(lift<T, L>(from + i, count, 0)), count);
        });
      } else {
        for (int64_t i = 0; i < n; ++i) down(out.data + i * out.step, up(out.data[i * out.step]) * slope(V{} + up(from[i]))[0]);
      }
    }
  }

  // The weights of words j … as they lie in view g.
  const A* weights_of(int g, int64_t j, int64_t length, A* stage) const {
    return kWeighed ? moved_row(weights, p.inverse(g), j, length, stage) : nullptr;
  }
  template <class Count>
  static EQK_INLINE V weighed(V x, const A* from, int64_t i, Count count) {
    if constexpr (kWeighed) return x * lift<A, L>(from + i, count, 0);
    else return x;
  }

  // Σ w[v] · row[v] of a block, as differences from its first.
  template <class E>
  static double weighed_total(const E* row, const A* w, int64_t n) {
    const A first = up(row[0]), base = std::isfinite(first) ? first : 0;
    V part = {}, part_w = {};
    for_vectors<L>(n, [&](int64_t i, auto count) {
      const V each = lift<A, L>(w + i, count, 0);
      part += (lift<E, L>(row + i, count, base) - base) * each;
      part_w += each;
    });
    return double(sum_of<A, L>(part)) + double(sum_of<A, L>(part_w)) * double(base);
  }

  RowOut<T> grad(int g) const { return RowOut<T>(p, p.out, r, g, streaming); }

  static double lse(const Stats<A>& s) { return double(s.top) + double(s.log_sum); }
  // The derivative of z · Z² in Z; what is added for it is added only if there is a z, for the sake of 0 · ∞.
  double steepness(const Stats<A>& s) const { return p.z_loss == 0 ? 0 : 2 * p.z_loss * of_target * lse(s); }

  // −(1 − ε) w[t] log q[t] − ε/V Σ w log q + z w[t] Z², where an ε of 1 leaves an impossible target out.
  A loss(double log_q, double sum, double squares) const {
    const double at_target = kept == 0 ? 0 : -double(kept) * of_target * log_q;
    const double entropy = p.smoothing == 0 ? at_target : at_target - double(spread) * sum;
    return A(p.z_loss == 0 ? entropy : entropy + p.z_loss * of_target * squares);
  }
  double sum_of_weights() const { return kWeighed ? p.class_weight_sum : double(n); }

  // q = softmax of the mean of the views' logits. In scratch memory that mean becomes its exponentials, then the gradient.
  A of_logits() const {
    A* const mean = scratch<A>(1, n + L);
    A* const tops = scratch<A>(6, n / kRowBlock + 1);
    const bool writes = p.out.data;
    A at_target = 0;
    double sum = 0;
    Online<A, L> online;
    for_blocks(n, [&](int64_t j, int64_t length) {
      const T* const* from = y.moved(p, j, length);
      const int views = p.views;
      const A part = share;
      for_vectors<L>(length, [&](int64_t i, auto count) {
        V total = lift<T, L>(from[0] + i, count, -kInfinity<A>);
        for (int g = 1; g < views; ++g) total += lift<T, L>(from[g] + i, count, -kInfinity<A>);
        store<A, L>(mean + j + i, total * part);
      });
      if (t >= j && t < j + length) at_target = mean[t];
      if (p.smoothing != 0) sum += kWeighed ? weighed_total(mean + j, weights + j, length) : total_of(mean + j, length);
      // Whole vectors: what follows the row is −∞.
      online.template join<kWhole>((length + L - 1) / L * L, [at = mean + j](int64_t i, auto) { return load<A, L>(at + i); },
                                   writes ? mean + j : nullptr);
      tops[j / kRowBlock] = online.top;
    });
    const Stats<A> s = online.finish();
    const double log_q = log_p(s, at_target);
    if (writes) {
      const A scale = factor * share, uniform = spread * scale;
      const double slope = all + steepness(s);
      for_blocks(n, [&](int64_t j, int64_t length) {
        const A weight = exp_one(tops[j / kRowBlock] - s.top) * s.inverse * scale * A(slope);
        for_vectors<L>(length, [&](int64_t i, auto count) {
          store<A, L>(mean + j + i, load<A, L>(mean + j + i) * weight - weighed(V{} + uniform, weights, j + i, count));
        });
      });
      mean[t] = A(std::exp(log_q) * slope - double(spread) * of_target - double(kept) * of_target) * scale;
      A* const stage = scratch<A>(7, kRowBlock);
      for (int g = 0; g < p.views; ++g) {
        const RowOut<T> out = grad(g);
        for_blocks(n, [&](int64_t j, int64_t length) {
          const A* const from = moved_row(mean, p.inverse(g), j, length, stage);
          for_vectors<L>(length, [&](int64_t i, auto count) { out.put(j, i, lift<A, L>(from + i, count, 0), count); });
          out.end(j, length);
        });
      }
    }
    return loss(log_q, sum - sum_of_weights() * lse(s), lse(s) * lse(s));
  }

  // Each view's exponentials, in one row of scratch memory a view, and what was subtracted in each block.
  A* kept_exps(int g) const { return scratch<A>(1, p.views * (n + L)) + g * (n + L); }
  A* kept_tops(int g) const { return scratch<A>(6, p.views * (n / kRowBlock + 1)) + g * (n / kRowBlock + 1); }

  Stats<A>* statistics(bool keeps) const {
    Stats<A>* const stats = scratch<Stats<A>>(5, p.views);
    for (int g = 0; g < p.views; ++g)
      stats[g] = keeps ? stats_of(y.rows[g], n, kept_exps(g), kept_tops(g)) : stats_of(y.rows[g], n);
    return stats;
  }
  // log p_g[t], in double: its rounding would be that of the whole gradient.
  double at_target(const Stats<A>* stats, int g) const { return log_p(stats[g], up(y.rows[g][source_of(p.moves(g), t)])); }
  static double log_p(const Stats<A>& s, A x) { return double(x) - double(s.top) + std::log(double(s.inverse)); }

  // The mean of the views' Z².
  double squares(const Stats<A>* stats) const {
    double total = 0;
    for (int g = 0; p.z_loss != 0 && g < p.views; ++g) total += lse(stats[g]) * lse(stats[g]);
    return total / p.views;
  }
  A with_penalty(A x, A penalty) const { return p.z_loss == 0 ? x : x + penalty; }

  // The part of view g in the views' mean probability of the target: none where the view does not allow it.
  A part_of(const Stats<A>* stats, int g, double log_q) const {
    const double log_p = at_target(stats, g);
    return log_p == -kInfinity<double> ? A(0) : A(std::exp(log_p - log_q) * double(share));
  }

  // log of the views' mean probability of the target.
  double mixed(const Stats<A>* stats) const {
    double most = -kInfinity<double>, sum = 0;
    for (int g = 0; g < p.views; ++g) most = std::max(most, at_target(stats, g));
    const double base = most == -kInfinity<double> ? 0.0 : most;
    for (int g = 0; g < p.views; ++g) sum += std::exp(at_target(stats, g) - base);
    return base + std::log(sum / p.views);
  }

  // Each view by itself: log q is the mean of the views' log p, or without smoothing q the mean of their p. The gradient is
  // (p − what is wanted) times one number for each view.
  A of_views() const {
    const Stats<A>* const stats = statistics(p.out.data);
    const bool probs = p.space == kProbs;
    double log_q = 0;
    if (probs)
      log_q = mixed(stats);
    else
      for (int g = 0; g < p.views; ++g) log_q += at_target(stats, g) / p.views;
    A* const stage = kWeighed ? scratch<A>(7, kRowBlock) : nullptr;
    double sum = 0;
    for (int g = 0; g < p.views; ++g) {
      const Stats<A> s = stats[g];
      if (kWeighed) {
        for_blocks(n, [&](int64_t j, int64_t length) { sum += weighed_total(y.rows[g] + j, weights_of(g, j, length, stage), length); });
        sum -= sum_of_weights() * lse(s);
      } else if (p.smoothing != 0) {
        sum += total_of(y.rows[g], n) - double(n) * lse(s);
      }
      if (!p.out.data) continue;
      const A scale = (probs ? part_of(stats, g, log_q) : share) * factor, uniform = spread * scale;
      const A steep = A(steepness(s)) * share * factor;
      const A* const exps = kept_exps(g);
      const RowOut<T> out = grad(g);
      for_blocks(n, [&](int64_t j, int64_t length) {
        const A weight = exp_one(kept_tops(g)[j / kRowBlock] - s.top) * s.inverse * with_penalty(scale * A(all), steep);
        const A* const here = weights_of(g, j, length, stage);
        for_vectors<L>(length, [&](int64_t i, auto count) {
          out.put(j, i, load<A, L>(exps + j + i) * weight - weighed(V{} + uniform, here, i, count), count);
        });
        out.end(j, length);
      });
      const double p_target = std::exp(at_target(stats, g));
      const A slope = A(p_target * all - double(spread) * of_target - double(kept) * of_target) * scale;
      out.replace(source_of(p.moves(g), t), with_penalty(slope, A(p_target) * steep));
    }
    return loss(log_q, sum * double(share), squares(stats));
  }

  // q = the mean of the views' p, with smoothing: every log q[v] counts, and is kept in scratch memory. share_g(v) is the part
  // of view g in q[v], times what is wanted of v.
  A of_mixture() const {
    const Stats<A>* const stats = statistics(false);
    const int views = p.views;
    A* const log_qs = scratch<A>(1, n + L);
    double* const totals = scratch<double>(6, views);  // Σ_v share_g(v)
    V* const log_p = scratch<V>(7, 2 * views);
    V* const parts = log_p + views;
    std::fill(totals, totals + views, 0.0);
    const A log_views = std::log(A(views)), uniform = spread;
    double sum = 0;
    for_blocks(n, [&](int64_t j, int64_t length) {
      const T* const* from = y.moved(p, j, length);
      V part = {};
      for (int g = 0; g < views; ++g) parts[g] = V{};
      for_vectors<L>(length, [&](int64_t i, auto count) {
        V most = V{} - kInfinity<A>, mass = {};
        for (int g = 0; g < views; ++g) {
          log_p[g] = (lift<T, L>(from[g] + i, count, stats[g].top) - stats[g].top) - stats[g].log_sum;
          most = log_p[g] > most ? log_p[g] : most;
        }
        const V base = most == -kInfinity<A> ? V{} : most;
        for (int g = 0; g < views; ++g) {
          log_p[g] = exp_lanes<A, L>(log_p[g] - base);
          mass += log_p[g];
        }
        V log_q = base + log_lanes<A, L>(mass) - log_views;
        log_q = mass == A(0) ? V{} - kInfinity<A> : log_q;
        store<A, L>(log_qs + j + i, log_q);
        const V counts = lane_numbers<A, L>(std::make_index_sequence<L>());
        part += counts < A(int(count)) ? weighed(log_q, weights, j + i, count) : V{};
        const V each = weighed(V{} + uniform, weights, j + i, count);
        for (int g = 0; g < views; ++g) parts[g] += counts < A(int(count)) ? log_p[g] / (mass == A(0) ? V{} + A(1) : mass) * each : V{};
      });
      sum += double(sum_of<A, L>(part));
      for (int g = 0; g < views; ++g) totals[g] += double(sum_of<A, L>(parts[g]));
    });
    const A log_q = log_qs[t];
    if (!p.out.data) return loss(log_q, sum, squares(stats));
    A* const stage = scratch<A>(7, 2 * kRowBlock);
    for (int g = 0; g < views; ++g) {
      const Stats<A> s = stats[g];
      const T* const row = y.rows[g];
      const A target_share = part_of(stats, g, log_q) * kept * A(of_target), part = share, scale = factor;
      const A total = with_penalty(A(totals[g] + double(target_share)), A(steepness(s)) * share);
      const int64_t source = source_of(p.moves(g), t);
      const RowOut<T> out = grad(g);
      const auto gradient = [&](V x, V q, V uniform) {
        const V d = x - s.top;
        const V ratio = exp_lanes<A, L>(d - s.log_sum - q);  // 0/0 where no view allows the word
        return (exp_lanes<A, L>(d) * s.inverse) * total - (d == -kInfinity<A> ? V{} : ratio) * part * uniform;
      };
      for_blocks(n, [&](int64_t j, int64_t length) {
        const A* const log_q_here = moved_row(log_qs, p.inverse(g), j, length, stage);
        const A* const here = weights_of(g, j, length, stage + kRowBlock);
        for_vectors<L>(length, [&](int64_t i, auto count) {
          const V each = weighed(V{} + uniform, here, i, count);
          out.put(j, i, gradient(lift<T, L>(row + j + i, count, 0), lift<A, L>(log_q_here + i, count, 0), each) * scale, count);
        });
        out.end(j, length);
      });
      out.replace(source, (gradient(V{} + up(row[source]), V{} + log_q, V{} + uniform * A(of_target))[0] - target_share) * scale);
    }
    return loss(log_q, sum, squares(stats));
  }
};

template <class T, bool kWeighed>
void cross_entropy_rows(const RowProblem& p) {
  const int64_t bytes = p.planes() * p.W * p.views * int64_t(sizeof(T)), n = p.W;
  const bool streaming = p.out.data && p.softcap == 0 && past_caches(2 * bytes);  // capped rows are read once more
  for_rows(p, [&](int64_t r) {
    Acc<T>& loss = static_cast<Acc<T>*>(p.numbers)[r];
    if (p.target[r] == p.ignore_index) {
      loss = 0;
      for (int g = 0; p.out.data && g < p.views; ++g) RowOut<T>(p, p.out, r, g, streaming).zeros(n);
      return;
    }
    const Row<T, kWeighed> row(p, r, p.target[r], streaming);
    loss = p.space == kLogits ? row.of_logits() : p.space == kProbs && p.smoothing != 0 ? row.of_mixture() : row.of_views();
    if (row.row_weight != 1) loss *= row.row_weight;
    if (p.softcap != 0 && p.out.data) row.uncap();
  });
}

template <class T>
void cross_entropy_typed(const RowProblem& p) {
  if (!p.class_weights || p.smoothing == 0) return cross_entropy_rows<T, false>(p);
  RowProblem weighed = p;
  const Acc<T>* const weights = static_cast<const Acc<T>*>(p.class_weights);
  for (int64_t v = 0; v < p.W; ++v) weighed.class_weight_sum += double(weights[v]);
  cross_entropy_rows<T, true>(weighed);
}

}  // namespace EQK_ISA
}  // namespace equikern
