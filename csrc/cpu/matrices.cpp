// Views that multiply the vectors of the last dim by small matrices. A block of vectors is brought into registers' order,
// entry by entry, so that one vector instruction works on as many vectors of the user's; every view of a block is made
// from there. 2, 3 and 4 entries are unrolled, other numbers run in loops.
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "orbit.h"
#include "reduce.h"

namespace equikern {
namespace EQK_ISA {

// `d` rows of kVectorBlock numbers, row i holding entry i of every vector.
template <class A>
inline A* rows_of(int slot, int64_t d) { return scratch<A>(slot, d * kVectorBlock); }
// Lanes that are computed for n vectors; those behind them hold zeros.
inline int lanes_for(int64_t n) { return int((n + 15) / 16 * 16); }

// Neighbours as numbers, and back: chunks (vectors.h) keep those of bfloat16 in another order.
template <class T, int L>
EQK_INLINE Vec<Acc<T>, L> widened(const T* p) {
  if constexpr (std::is_same<T, BFloat16>::value)
    return same_bits<Vec<float, L>>(__builtin_convertvector((load<uint16_t, L>(&p->bits)), Vec<uint32_t, L>) << 16);
  else
    return load_up<T, L>(p);
}
template <class T, int L>
EQK_INLINE void narrowed(T* p, Vec<Acc<T>, L> v) {
  if constexpr (std::is_same<T, BFloat16>::value)
    store<uint16_t, L>(&p->bits, __builtin_convertvector(round_to_bfloat16<L>(v) >> 16, Vec<uint16_t, L>));
  else
    store_down<T, L>(p, v);
}

template <class T, int D>
inline void load_vectors(Acc<T>* to, const T* from, int64_t step, int64_t entry, int64_t size, int64_t n) {
  typedef Acc<T> A;
  const int64_t d = D ? D : size;
  const int lanes = lanes_for(n);
  if (lanes > n)
    for (int64_t i = 0; i < d; ++i) std::memset(to + i * kVectorBlock + n, 0, (lanes - n) * sizeof(A));
  if (D && entry == 1 && step == d) {
    alignas(64) A flat[D ? D * kVectorBlock : 1];
    const A* numbers = flat;
    if constexpr (sizeof(T) == sizeof(A)) {
      numbers = from;
    } else {
      constexpr int L = kLanesOf<T>;
      int64_t k = 0;
      for (; k + L <= n * d; k += L) store<A, L>(flat + k, widened<T, L>(from + k));
      for (; k < n * d; ++k) flat[k] = up(from[k]);
    }
    for (int64_t k = 0; k < n; ++k)
      for (int i = 0; i < D; ++i) to[i * kVectorBlock + k] = numbers[k * D + i];
    return;
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k < n; ++k) to[i * kVectorBlock + k] = up(from[k * step + i * entry]);
}

template <class T, int D>
inline void store_vectors(T* to, int64_t step, int64_t entry, int64_t size, int64_t n, const Acc<T>* from) {
  typedef Acc<T> A;
  const int64_t d = D ? D : size;
  if (D && entry == 1 && step == d) {
    if constexpr (sizeof(T) == sizeof(A)) {
      for (int64_t k = 0; k < n; ++k)
        for (int i = 0; i < D; ++i) to[k * D + i] = from[i * kVectorBlock + k];
    } else {
      alignas(64) A flat[D ? D * kVectorBlock : 1];
      for (int64_t k = 0; k < n; ++k)
        for (int i = 0; i < D; ++i) flat[k * D + i] = from[i * kVectorBlock + k];
      constexpr int L = kLanesOf<T>;
      int64_t k = 0;
      for (; k + L <= n * d; k += L) narrowed<T, L>(to + k, load<A, L>(flat + k));
      for (; k < n * d; ++k) down(to + k, flat[k]);
    }
    return;
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k < n; ++k) down(to + k * step + i * entry, from[i * kVectorBlock + k]);
}

// to = m · from for every lane.
template <class A, int D>
inline void multiply(A* __restrict to, const A* __restrict m, const A* __restrict from, int64_t size, int lanes) {
  if constexpr (D > 0) {
    for (int k = 0; k < lanes; ++k) {
      A x[D];
      for (int j = 0; j < D; ++j) x[j] = from[j * kVectorBlock + k];
      for (int i = 0; i < D; ++i) {
        A sum = m[i * D] * x[0];
        for (int j = 1; j < D; ++j) sum += m[i * D + j] * x[j];
        to[i * kVectorBlock + k] = sum;
      }
    }
  } else {
    for (int64_t i = 0; i < size; ++i) {
      A* row = to + i * kVectorBlock;
      for (int k = 0; k < lanes; ++k) row[k] = m[i * size] * from[k];
      for (int64_t j = 1; j < size; ++j) {
        const A f = m[i * size + j];
        for (int k = 0; k < lanes; ++k) row[k] += f * from[j * kVectorBlock + k];
      }
    }
  }
}

// Every row of v times the factor of its vector: scale times view g's weight.
template <class A>
inline void weigh(const Problem& p, A* v, int64_t first, int64_t n, int g, A scale) {
  if (!p.weights && scale == A(1)) return;
  const int lanes = lanes_for(n);
  const int64_t per = p.planes_per_weight;
  if (!p.weights || first / per == (first + n - 1) / per) {
    const A factor = A(weight(p, g, first)) * scale;
    for (int64_t i = 0; i < p.W; ++i)
      for (int k = 0; k < lanes; ++k) v[i * kVectorBlock + k] *= factor;
    return;
  }
  alignas(64) A factors[kVectorBlock] = {};
  for (int64_t k = 0; k < n; ++k) factors[k] = A(weight(p, g, first + k)) * scale;
  for (int64_t i = 0; i < p.W; ++i)
    for (int k = 0; k < lanes; ++k) v[i * kVectorBlock + k] *= factors[k];
}

// body(first vector, vectors) for blocks that lie a constant step apart and do not cross a multiple of `border`.
template <class F>
inline void for_blocks(const Problem& p, int64_t first, int64_t end, int64_t border, const F& body) {
  const int64_t run = p.dims ? p.size[p.dims - 1] : 1;
  while (first < end) {
    const int64_t n = std::min({end - first, run - first % run, border - first % border, int64_t(kVectorBlock)});
    body(first, n);
    first += n;
  }
}
constexpr int64_t kNoBorder = INT64_MAX;

inline int64_t work_of(const Problem& p) { return p.planes() * p.W * p.views; }
// The same over all vectors, kVectorShare of them a unit.
template <class F>
inline void for_vectors(const Problem& p, int64_t border, const F& body) {
  const int64_t vectors = p.planes();
  for_units(p, (vectors + kVectorShare - 1) / kVectorShare, work_of(p), [&](int64_t u) {
    for_blocks(p, u * kVectorShare, std::min(vectors, (u + 1) * kVectorShare), border, body);
  });
}

template <class T>
inline T* vectors_at(const Problem& p, const Side& side, int64_t first, int64_t g) { return at<T>(p, side, first) + g * side.group; }

template <class T, int D>
inline void read_block(const Problem& p, const Side& side, int64_t first, int64_t n, int64_t g, Acc<T>* to) {
  load_vectors<T, D>(to, vectors_at<T>(p, side, first, g), next_plane(p, side), side.col, p.W, n);
}
template <class T, int D>
inline void write_block(const Problem& p, const Side& side, int64_t first, int64_t n, int64_t g, const Acc<T>* from) {
  store_vectors<T, D>(vectors_at<T>(p, side, first, g), next_plane(p, side), side.col, p.W, n, from);
}
template <class A>
inline const A* mat(const Problem& p, int64_t g) { return static_cast<const A*>(p.mats) + g * p.W * p.W; }

template <class T, int D>
void matrix_orbit(const Problem& p) {
  typedef Acc<T> A;
  for_vectors(p, kNoBorder, [&](int64_t first, int64_t n) {
    const int lanes = lanes_for(n);
    A *x = rows_of<A>(0, p.W), *v = rows_of<A>(1, p.W);
    read_block<T, D>(p, p.in, first, n, 0, x);
    for (int g = 0; g < p.views; ++g) {
      multiply<A, D>(v, mat<A>(p, g), x, p.W, lanes);
      weigh<A>(p, v, first, n, g, A(p.scale));
      if (p.index)
        for (int64_t k = 0; k < n; ++k)
          if (p.index[(first + k) / p.planes_per_index] != g)
            for (int64_t i = 0; i < p.W; ++i) v[i * kVectorBlock + k] = 0;
      write_block<T, D>(p, p.out, first, n, g, v);
    }
  });
}

template <class T, int D>
void matrix_reduce(const Problem& p) {
  typedef Acc<T> A;
  const bool spread = p.op == kStd || p.op == kMeanStd, pair = p.op == kMeanStd, plus = p.plus.data;
  const int64_t row = p.kept() * kVectorBlock;
  for_vectors(p, kNoBorder, [&](int64_t first, int64_t n) {
    const int lanes = lanes_for(n);
    A *x = rows_of<A>(0, p.W), *v = rows_of<A>(1, p.W), *s = rows_of<A>(2, (p.kept() + 1) * p.W), *m = s + p.W * row;
    A* beside = plus ? rows_of<A>(3, p.W) : nullptr;
    if (plus) read_block<T, D>(p, p.plus, first, n, 0, beside);
    for (int g = 0; g < p.views; ++g) {
      read_block<T, D>(p, p.in, first, n, g, x);
      for (int64_t i = 0; plus && i < p.W; ++i)
        for (int k = 0; k < lanes; ++k) x[i * kVectorBlock + k] += beside[i * kVectorBlock + k];
      multiply<A, D>(v, mat<A>(p, g), x, p.W, lanes);
      if (p.op == kSum) weigh<A>(p, v, first, n, g, A(1));
      with_op(p.op, [&](auto which) {
        for (int64_t i = 0; i < p.W; ++i)
          join_run<A, which()>(s + i * row, spread ? m + i * kVectorBlock : nullptr, v + i * kVectorBlock, lanes, g, A(1));
      });
    }
    for (int64_t i = 0; i < p.W; ++i)
      finish_run<A>(p, v + i * kVectorBlock, pair ? x + i * kVectorBlock : nullptr, s + i * row, spread ? m + i * kVectorBlock : nullptr,
                    lanes);
    write_block<T, D>(p, p.out, first, n, 0, v);
    if (pair) write_block<T, D>(p, p.spread, first, n, 0, x);
  });
}

template <class T, int D>
void matrix_dot(const Problem& p) {
  typedef Acc<T> A;
  // A unit is a part of one weight's vectors: by shapes only, so that sums do not depend on the number of threads.
  const int64_t per = p.planes_per_weight, shares = (per + kVectorShare - 1) / kVectorShare;
  const int64_t columns = p.planes() ? p.planes() / per : 0;
  std::vector<double> parts(p.views * columns * shares);
  for_units(p, columns * shares, work_of(p), [&](int64_t u) {
    const int64_t column = u / shares, start = (u % shares) * kVectorShare;
    for_blocks(p, column * per + start, column * per + std::min(per, start + kVectorShare), kNoBorder, [&](int64_t first, int64_t n) {
      const int lanes = lanes_for(n);
      A *x = rows_of<A>(0, p.W), *v = rows_of<A>(1, p.W), *y = rows_of<A>(2, p.W);
      read_block<T, D>(p, p.in, first, n, 0, x);
      for (int g = 0; g < p.views; ++g) {
        multiply<A, D>(v, mat<A>(p, g), x, p.W, lanes);
        read_block<T, D>(p, p.other, first, n, g, y);
        alignas(64) A sums[16] = {};
        for (int64_t i = 0; i < p.W; ++i)
          for (int k = 0; k < lanes; k += 16)
            for (int l = 0; l < 16; ++l) sums[l] += v[i * kVectorBlock + k + l] * y[i * kVectorBlock + k + l];
        double sum = 0;
        for (const A a : sums) sum += a;
        parts[u * p.views + g] += sum;
        if (!p.out.data) continue;
        weigh<A>(p, v, first, n, g, A(1));
        write_block<T, D>(p, p.out, first, n, g, v);
      }
    });
  });
  A* dots = static_cast<A*>(p.dots);
  for (int g = 0; g < p.views; ++g) {
    for (int64_t c = 0; c < p.weight_columns; ++c) {
      double sum = 0;
      for (int64_t s = 0; columns && s < shares; ++s) sum += parts[(c * shares + s) * p.views + g];
      dots[g * p.weight_columns + c] = A(sum);
    }
  }
}

// to = m · from, where the matrix of lane k begins at m + start[k].
template <class A, int D>
inline void multiply_each(A* __restrict to, const A* m, const int32_t* start, const A* __restrict from, int64_t size, int lanes) {
  const int64_t d = D ? D : size;
  for (int64_t i = 0; i < d; ++i, m += d) {
    A* const row = to + i * kVectorBlock;
    if constexpr (D > 0) {
      for (int k = 0; k < lanes; ++k) {
        A sum = m[start[k]] * from[k];
        for (int j = 1; j < D; ++j) sum += m[start[k] + j] * from[j * kVectorBlock + k];
        row[k] = sum;
      }
    } else {
      for (int k = 0; k < lanes; ++k) row[k] = m[start[k]] * from[k];
      for (int64_t j = 1; j < d; ++j)
        for (int k = 0; k < lanes; ++k) row[k] += m[start[k] + j] * from[j * kVectorBlock + k];
    }
  }
}

template <class T, int D>
void matrix_select(const Problem& p) {
  typedef Acc<T> A;
  const int64_t per = p.planes_per_index, d = D ? D : p.W;
  if (per >= 16) {
    for_vectors(p, per, [&](int64_t first, int64_t n) {
      const int g = p.chosen(first / per);
      A *x = rows_of<A>(0, d), *v = rows_of<A>(1, d);
      read_block<T, D>(p, p.in, first, n, g, x);
      multiply<A, D>(v, mat<A>(p, g), x, d, lanes_for(n));
      write_block<T, D>(p, p.out, first, n, 0, v);
    });
    return;
  }
  for_vectors(p, kNoBorder, [&](int64_t first, int64_t n) {  // too few alike for a block: every vector has its own view
    A *x = rows_of<A>(0, d), *v = rows_of<A>(1, d);
    const T* from = vectors_at<T>(p, p.in, first, 0);
    alignas(64) int32_t start[kVectorBlock] = {};
    std::memset(x, 0, d * kVectorBlock * sizeof(A));
    int64_t column = first / per, left = per - first % per;
    for (int64_t k = 0; k < n; ++k, --left, from += next_plane(p, p.in)) {
      if (left == 0) ++column, left = per;
      const int64_t g = p.chosen(column);
      start[k] = int32_t(g * d * d);
      for (int64_t j = 0; j < d; ++j) x[j * kVectorBlock + k] = up(from[g * p.in.group + j * p.in.col]);
    }
    multiply_each<A, D>(v, mat<A>(p, 0), start, x, d, lanes_for(n));
    write_block<T, D>(p, p.out, first, n, 0, v);
  });
}

// f(a value of the dtype's type, the size where it is unrolled or else 0), as constants.
template <class F>
void with_size(const Problem& p, const F& f) {
  with_float(p.dtype, [&](auto t) {
    switch (p.W) {
      case 2: return f(t, std::integral_constant<int, 2>());
      case 3: return f(t, std::integral_constant<int, 3>());
      case 4: return f(t, std::integral_constant<int, 4>());
      default: return f(t, std::integral_constant<int, 0>());
    }
  });
}

void orbit_of_matrices(const Problem& p) {
  with_size(p, [&](auto t, auto d) { matrix_orbit<decltype(t), d()>(p); });
}
void reduce_of_matrices(const Problem& p) {
  with_size(p, [&](auto t, auto d) { matrix_reduce<decltype(t), d()>(p); });
}
void dot_of_matrices(const Problem& p) {
  with_size(p, [&](auto t, auto d) { matrix_dot<decltype(t), d()>(p); });
}
void select_of_matrices(const Problem& p) {
  with_size(p, [&](auto t, auto d) { matrix_select<decltype(t), d()>(p); });
}

}  // namespace EQK_ISA
}  // namespace equikern
