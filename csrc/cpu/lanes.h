// Arithmetic on vectors of numbers in their natural order: exp, log, sums over lanes, and runs whose end is no whole vector.
#pragma once

#include <limits>
#include <type_traits>

#include "vectors.h"

namespace equikern {
namespace EQK_ISA {

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// e^x of x up to 88 to about one unit in the last place, down to the subnormal numbers; NaN stays and e^−∞ is 0.
template <class A, int L>
EQK_INLINE Vec<A, L> exp_lanes(Vec<A, L> x) {
  typedef Vec<A, L> V;
  constexpr bool kSingle = sizeof(A) == 4;
  typedef std::conditional_t<kSingle, uint32_t, uint64_t> Word;
  typedef Vec<Word, L> U;
  constexpr A kLeast = kSingle ? A(-104) : A(-746);
  constexpr A kRound = kSingle ? A(12582912) : A(6755399441055744);  // 1.5 · 2^(digits − 1): adding it rounds to integers
  constexpr A kHigh = kSingle ? A(0.693359375) : A(6.93145751953125e-1);
  constexpr A kLow = kSingle ? A(-2.12194440e-4) : A(1.42860682030941723212e-6);
  x = x < kLeast ? V{} + kLeast : x;
  const V shifted = x * A(1.44269504088896340736) + kRound;
  const V n = shifted - kRound;  // x = n·log 2 + r
  V r = x - n * kHigh;
  r = r - n * kLow;
  V e;
  if constexpr (kSingle) {
    e = r * A(1.9875691500e-4) + A(1.3981999507e-3);
    e = e * r + A(8.3334519073e-3);
    e = e * r + A(4.1665795894e-2);
    e = e * r + A(1.6666665459e-1);
    e = e * r + A(5.0000001201e-1);
    e = e * (r * r) + r + A(1);
  } else {
    e = r * A(1.0 / 6227020800) + A(1.0 / 479001600);
    e = e * r + A(1.0 / 39916800);
    e = e * r + A(1.0 / 3628800);
    e = e * r + A(1.0 / 362880);
    e = e * r + A(1.0 / 40320);
    e = e * r + A(1.0 / 5040);
    e = e * r + A(1.0 / 720);
    e = e * r + A(1.0 / 120);
    e = e * r + A(1.0 / 24);
    e = e * r + A(1.0 / 6);
    e = e * r + A(0.5);
    e = e * (r * r) + r + A(1);
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && kSingle) return same_bits<V>(_mm512_scalef_ps(same_bits<__m512>(e), same_bits<__m512>(n)));
  if constexpr (sizeof(V) == 64 && !kSingle) return same_bits<V>(_mm512_scalef_pd(same_bits<__m512d>(e), same_bits<__m512d>(n)));
#endif
  // 2^n as the product of two powers, each of them a normal number. n as an integer is in the low bits of `shifted`.
  constexpr int kDigits = kSingle ? 23 : 52, kBias = kSingle ? 127 : 1023, kOffset = 1024;  // the offset keeps n above 0
  const U k = (same_bits<U>(shifted) & Word(kSingle ? 0x7fffff : 0xfffffffffffffull)) - (Word(1) << (kDigits - 1)) + Word(kOffset * 2);
  const U half = k >> 1, rest = k - half;
  return e * same_bits<V>((half - Word(kOffset - kBias)) << kDigits) * same_bits<V>((rest - Word(kOffset - kBias)) << kDigits);
}

// log x of normal numbers to about two units in the last place; NaN and ∞ give NaN.
template <class A, int L>
EQK_INLINE Vec<A, L> log_lanes(Vec<A, L> x) {
  typedef Vec<A, L> V;
  constexpr bool kSingle = sizeof(A) == 4;
  typedef std::conditional_t<kSingle, int32_t, int64_t> Word;
  typedef Vec<Word, L> I;
  constexpr int kDigits = kSingle ? 23 : 52;
  constexpr Word kRootHalf = kSingle ? Word(0x3f3504f3) : Word(0x3fe6a09e667f3bcd);
  const I bits = same_bits<I>(x), exponent = (bits - kRootHalf) >> kDigits;
  const V m = same_bits<V>(bits - exponent * (Word(1) << kDigits));  // √½ … √2
  const V s = (m - A(1)) / (m + A(1)), z = s * s;              // log m = 2 artanh s
  V sum = V{} + A(kSingle ? 1.0 / 9 : 1.0 / 21);
#pragma GCC unroll 16
  for (int k = kSingle ? 7 : 19; k >= 3; k -= 2) sum = sum * z + A(1.0) / A(k);
  const V e = __builtin_convertvector(exponent, V);
  constexpr A kHigh = kSingle ? A(0.693359375) : A(6.93145751953125e-1);
  constexpr A kLow = kSingle ? A(-2.12194440e-4) : A(1.42860682030941723212e-6);
  const V twice = s + s;
  return e * kHigh + (e * kLow + twice * z * sum + twice) + (x - x);
}

// Σ or the largest of the lanes, always in the same order.
template <class A, int L, size_t... I>
EQK_INLINE Vec<A, L / 2> half_of(Vec<A, L> v, int first, std::index_sequence<I...>) {
  return first ? __builtin_shufflevector(v, v, (L / 2 + int(I))...) : __builtin_shufflevector(v, v, int(I)...);
}
template <class A, int L>
EQK_INLINE A sum_of(Vec<A, L> v) {
  if constexpr (L == 2) {
    return v[0] + v[1];
  } else {
    constexpr auto lanes = std::make_index_sequence<L / 2>();
    return sum_of<A, L / 2>(half_of<A, L>(v, 0, lanes) + half_of<A, L>(v, 1, lanes));
  }
}
template <class A, int L>
EQK_INLINE A largest_of(Vec<A, L> v) {
  if constexpr (L == 2) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    constexpr auto lanes = std::make_index_sequence<L / 2>();
    const Vec<A, L / 2> a = half_of<A, L>(v, 0, lanes), b = half_of<A, L>(v, 1, lanes);
    return largest_of<A, L / 2>(a > b ? a : b);
  }
}

// tanh x of |x| below kNear, from polynomials: Cephes' tanhf and tanh.
template <class A>
constexpr A kNear = A(0.625);
template <class A, int L>
EQK_INLINE Vec<A, L> tanh_near(Vec<A, L> x) {
  typedef Vec<A, L> V;
  const V z = x * x;
  V near;
  if constexpr (sizeof(A) == 4) {
    near = z * A(-5.70498872745e-3) + A(2.06390887954e-2);
    near = near * z + A(-5.37397155531e-2);
    near = near * z + A(1.33314422036e-1);
    near = near * z + A(-3.33332819422e-1);
  } else {
    const V p = (z * A(-9.64399179425052238628e-1) + A(-9.92877231001918586564e1)) * z + A(-1.61468768441708447952e3);
    const V q = ((z + A(1.12811678491632931402e2)) * z + A(2.23548839060100448583e3)) * z + A(4.84406305325125486048e3);
    near = p / q;
  }
  return near * z * x + x;
}
template <class A, int L>
EQK_INLINE Vec<A, L> size_of(Vec<A, L> x) {
  return x < A(0) ? -x : x;
}

// tanh x to about two units in the last place. Most numbers that it is taken of are small: those alone take no exponential.
template <class A, int L>
EQK_INLINE Vec<A, L> tanh_lanes(Vec<A, L> x) {
  typedef Vec<A, L> V;
  const V size = size_of<A, L>(x), near = tanh_near<A, L>(x);
  if (largest_of<A, L>(size) < kNear<A>) return near;
  const V e = exp_lanes<A, L>(size * A(-2)), far = (A(1) - e) / (A(1) + e);
  return size < kNear<A> ? near : x < A(0) ? -far : far;
}

// The derivative of tanh, 1 − tanh² = 1/cosh²: all digits of it, however close tanh is to 1.
template <class A, int L>
EQK_INLINE Vec<A, L> tanh_slope_lanes(Vec<A, L> x) {
  typedef Vec<A, L> V;
  const V size = size_of<A, L>(x), t = tanh_near<A, L>(x), near = A(1) - t * t;
  if (largest_of<A, L>(size) < kNear<A>) return near;
  const V e = exp_lanes<A, L>(size * A(-2)), sum = A(1) + e;
  return size < kNear<A> ? near : A(4) * e / (sum * sum);
}

// One number's exponential, the same bits as in a vector.
template <class A>
inline A exp_one(A x) {
  constexpr int L = kVectorBytes / int(sizeof(A));
  return exp_lanes<A, L>(Vec<A, L>{} + x)[0];
}

// How many numbers of a vector count: all of them, known to the compiler, or some at the end of a run.
template <int L>
using All = std::integral_constant<int, L>;

// body(first, count) over vectors of L.
template <int L, class F>
EQK_INLINE void for_vectors(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + L <= n; i += L) body(i, All<L>());
  if (i < n) body(i, int(n - i));
}

// L numbers from memory; where only some count the others are `fill`.
template <class T, int L>
EQK_INLINE Vec<Acc<T>, L> lift(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    typedef Vec<uint32_t, L> U;
    return same_bits<Vec<float, L>>(__builtin_convertvector(load<uint16_t, L>(reinterpret_cast<const uint16_t*>(p)), U) << 16);
  } else {
    return load_up<T, L>(p);
  }
}
template <class T, int L>
EQK_INLINE Vec<Acc<T>, L> lift(const T* p, All<L>, Acc<T>) {
  return lift<T, L>(p);
}
template <class A, int L, size_t... I>
EQK_INLINE Vec<A, L> lane_numbers(std::index_sequence<I...>) {
  return Vec<A, L>{A(I)...};
}
template <class T, int L>
EQK_INLINE Vec<Acc<T>, L> lift(const T* p, int count, Acc<T> fill) {
  typedef Acc<T> A;
  alignas(64) T some[L] = {};
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 4 && L == 16)
    _mm512_store_si512(some, _mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), p));
  else if constexpr (sizeof(T) == 8 && L == 8)
    _mm512_store_si512(some, _mm512_maskz_loadu_epi64(__mmask8((1u << count) - 1), p));
  else if constexpr (sizeof(T) == 2 && L == 16)
    _mm256_store_si256(reinterpret_cast<__m256i*>(some), _mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
  else
#endif
    std::memcpy(some, p, count * sizeof(T));
  return lane_numbers<A, L>(std::make_index_sequence<L>()) < A(count) ? lift<T, L>(some) : Vec<A, L>{} + fill;
}

// The same numbers rounded to memory.
template <class T, int L>
EQK_INLINE void lower(T* p, Vec<Acc<T>, L> v, All<L> = {}) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    typedef Vec<uint16_t, L> U;
    store<uint16_t, L>(reinterpret_cast<uint16_t*>(p), __builtin_convertvector(round_to_bfloat16<L>(v) >> 16, U));
  } else {
    store_down<T, L>(p, v);
  }
}
template <class T, int L>
EQK_INLINE void lower(T* p, Vec<Acc<T>, L> v, int count) {
  alignas(64) T some[L];
  lower<T, L>(some, v);
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 4 && L == 16)
    return _mm512_mask_storeu_epi32(p, __mmask16((1u << count) - 1), _mm512_load_si512(some));
  else if constexpr (sizeof(T) == 8 && L == 8)
    return _mm512_mask_storeu_epi64(p, __mmask8((1u << count) - 1), _mm512_load_si512(some));
  else if constexpr (sizeof(T) == 2 && L == 16)
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), _mm256_load_si256(reinterpret_cast<const __m256i*>(some)));
#endif
  std::memcpy(p, some, count * sizeof(T));
}

// The same past the caches, to memory that whole vectors divide.
template <class T, int L>
EQK_INLINE void lower_past(T* p, Vec<Acc<T>, L> v) {
  store_past<T, L>(p, [v](T* to) { lower<T, L>(to, v); });
}

}  // namespace EQK_ISA
}  // namespace equikern
