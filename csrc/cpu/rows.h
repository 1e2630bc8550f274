// What the kernels with a softmax share: rows of logits, their statistics in one pass, and results written block by block.
#pragma once

#include <cmath>

#include "lanes.h"
#include "units.h"

namespace equikern {
namespace EQK_ISA {

template <class F>
inline void for_blocks(int64_t n, const F& body) {
  for (int64_t j = 0; j < n; j += kRowBlock) body(j, std::min(kRowBlock, n - j));
}

template <class F>
inline void for_rows(const RowProblem& p, const F& body) {
  for_units(p, p.planes(), p.planes() * p.W * p.views, body);
}

// What a softmax needs to know of a row: log p = (x − top) − log_sum, p = exp(x − top) · inverse. NaN if the row has one,
// or nothing but −∞.
template <class A>
struct Stats {
  A top, log_sum, inverse;
};

// What scores need beside: Σ exp(x − top) without the largest number, which would drown a small rest, and Σ (x − top) ·
// exp(x − top). NaN if the row has one, or nothing but −∞.
template <class A>
struct Spread {
  A top, rest, moment;
};

// Which sums: all exponentials, those without the largest numbers, or these and the moment.
enum Sums { kWhole, kRest, kMoments };

// Sums of exp(x − top), from blocks whose own largest number may raise the top.
template <class A, int L>
struct Online {
  typedef Vec<A, L> V;
  A top = -kInfinity<A>;
  V sum = {};     // for scores without the largest numbers
  V many = {};    // how many these are
  V moment = {};  // Σ (x − top) · exp(x − top)

  // get(i, count) are the numbers i … i + count of the block in L1, −∞ in the lanes that do not count.
  // The exponentials, of x minus the top so far, are written to `kept` if it is given: whole vectors.
  template <Sums kSums, class Get>
  EQK_INLINE void join(int64_t n, const Get& get, A* kept = nullptr) {
    V best = V{} - kInfinity<A>;
    for_vectors<L>(n, [&](int64_t i, auto count) {
      const V x = get(i, count);
      best = x > best ? x : best;
    });
    const A most = largest_of<A, L>(best);
    if (most > top) {
      if (top != -kInfinity<A>) {
        const A factor = exp_one(top - most);
        if (kSums != kWhole) sum += many, many = V{};
        if (kSums == kMoments) moment = (moment + sum * std::max(top - most, A(-10000))) * factor;  // below, factor is 0
        sum *= factor;
      }
      top = most;
    }
    const A base = top == -kInfinity<A> ? A(0) : top;
    V part = {}, part_many = {}, part_moment = {};
    const auto add = [&](auto has_top) {
      for_vectors<L>(n, [&](int64_t i, auto count) {
        const V d = get(i, count) - base, e = exp_lanes<A, L>(d);
        part += has_top ? (d == V{} ? V{} : e) : e;
        if (kept) store<A, L>(kept + i, e);
        if (has_top) part_many += d == V{} ? V{} + A(1) : V{};
        if (kSums == kMoments) part_moment += (d < A(-10000) ? V{} - A(10000) : d) * e;  // 0 where d is −∞
      });
    };
    if constexpr (kSums == kWhole) {
      add(std::false_type());
    } else {
      if (most == top) add(std::true_type());
      else add(std::false_type());
    }
    sum += part, many += part_many, moment += part_moment;
  }
  Spread<A> spread() const {
    const A nan_or_0 = top - top;
    return {top, sum_of<A, L>(sum) + (sum_of<A, L>(many) - A(1)) + nan_or_0, sum_of<A, L>(moment)};
  }
  Stats<A> finish() const {
    const A s = sum_of<A, L>(sum);
    return {top, std::log(s), A(1) / s};
  }
};

// `kept`, if given, gets the exponentials, and tops[j / kRowBlock] what was subtracted in each block.
template <Sums kSums, class T>
inline Online<Acc<T>, kLanesOf<T>> sums_of(const T* row, int64_t n, Acc<T>* kept = nullptr, Acc<T>* tops = nullptr) {
  Online<Acc<T>, kLanesOf<T>> online;
  for_blocks(n, [&](int64_t j, int64_t length) {
    online.template join<kSums>(
        length, [from = row + j](int64_t i, auto count) { return lift<T, kLanesOf<T>>(from + i, count, -kInfinity<Acc<T>>); },
        kept ? kept + j : nullptr);
    if (kept) tops[j / kRowBlock] = online.top;
  });
  return online;
}
template <class T>
inline Stats<Acc<T>> stats_of(const T* row, int64_t n, Acc<T>* kept = nullptr, Acc<T>* tops = nullptr) {
  return sums_of<kWhole>(row, n, kept, tops).finish();
}

// Σ of a row's numbers, in each block as differences from its first.
template <class T>
inline double total_of(const T* row, int64_t n) {
  constexpr int L = kLanesOf<T>;
  double total = 0;
  for_blocks(n, [&](int64_t j, int64_t length) {
    const Acc<T> first = up(row[j]), base = std::isfinite(first) ? first : 0;
    Vec<Acc<T>, L> part = {};
    for_vectors<L>(length, [&](int64_t i, auto count) { part += lift<T, L>(row + j + i, count, base) - base; });
    total += double(sum_of<Acc<T>, L>(part)) + double(length) * double(base);
  });
  return total;
}

// The views of one row, each in one piece: where they are, or copied if their numbers lie apart.
template <class T>
struct RowViews {
  const T** rows;
  const T** blocks;

  RowViews(const RowProblem& p, int64_t r) {
    rows = scratch<const T*>(2, 2 * p.views), blocks = rows + p.views;
    T* const copies = is_run(p, p.in) ? nullptr : scratch<T>(3, p.views * p.W);
    for (int g = 0; g < p.views; ++g) rows[g] = piece(p, p.in, r, g, copies + (copies ? g * p.W : 0));
  }
  static bool is_run(const RowProblem& p, const Side& side) { return side.col == 1 || p.W == 1; }
  static const T* piece(const RowProblem& p, const Side& side, int64_t r, int g, T* copy) {
    const T* from = at<T>(p, side, r) + g * side.group;
    if (is_run(p, side)) return from;
    for (int64_t j = 0; j < p.W; ++j) copy[j] = from[j * side.col];
    return copy;
  }
  // All views' numbers j … j + length, transformed.
  const T* const* moved(const RowProblem& p, int64_t j, int64_t length) const {
    T* const stages = scratch<T>(4, p.views * kRowBlock);
    for (int g = 0; g < p.views; ++g) blocks[g] = moved_row(rows[g], p.moves(g), j, length, stages + g * kRowBlock);
    return blocks;
  }
};

// One row of a result, written block by block: at once, past the caches, or by way of L1 if rows do not begin where cache
// lines do or numbers lie apart.
template <class T>
struct RowOut {
  static constexpr int L = kLanesOf<T>;
  T* data;
  T* stage;
  int64_t step;
  bool past;

  RowOut(const RowProblem& p, const Side& side, int64_t r, int g, bool streaming) : data(at<T>(p, side, r) + g * side.group) {
    step = RowViews<T>::is_run(p, side) ? 1 : side.col;
    past = streaming && step == 1 && reinterpret_cast<uintptr_t>(data) % kLine == 0;
    stage = (streaming && !past) || step != 1 ? scratch<T>(0, kRowBlock) : nullptr;
  }
  // Numbers i … of the block at j; `end` when all of the block are there.
  EQK_INLINE void put(int64_t j, int64_t i, Vec<Acc<T>, L> v, All<L> count) const {
    if (past) return lower_past<T, L>(data + j + i, v);
    lower<T, L>((stage ? stage : data + j) + i, v, count);
  }
  EQK_INLINE void put(int64_t j, int64_t i, Vec<Acc<T>, L> v, int count) const { lower<T, L>((stage ? stage : data + j) + i, v, count); }
  // One number of a finished block once more.
  void replace(int64_t i, Acc<T> x) const {
    if (past) stream_fence();
    down(data + i * step, x);
  }
  void end(int64_t j, int64_t length) const {
    if (!stage) return;
    if (step == 1) {
      stream(reinterpret_cast<char*>(data + j), reinterpret_cast<const char*>(stage), length * sizeof(T));
    } else {
      for (int64_t i = 0; i < length; ++i) data[(j + i) * step] = stage[i];
    }
  }
  void zeros(int64_t n) const {
    for_blocks(n, [&](int64_t j, int64_t length) {
      for_vectors<L>(length, [&](int64_t i, auto count) { put(j, i, Vec<Acc<T>, L>{}, count); });
      end(j, length);
    });
  }
};

// The entry of the source that entry t of a view shows.
inline int64_t source_of(const Moves& m, int64_t t) {
  const int32_t *end = m.positions + m.count, *found = std::lower_bound(m.positions, end, t);
  return found != end && *found == t ? m.sources[found - m.positions] : t;
}

}  // namespace EQK_ISA
}  // namespace equikern
