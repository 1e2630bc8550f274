// Small vectors in the compilers' extensions, so that one source serves SSE, AVX2, AVX-512 and NEON: loads, stores,
// reversal, transposition, and conversion between an element type and what it accumulates in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../dtypes.h"

// Vectors wider than the registers are passed in memory; nothing outside this translation unit calls these.
#pragma GCC diagnostic ignored "-Wpsabi"
// GCC 12 says so of its own intrinsics, whose undefined lanes are meant to be undefined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#define EQK_INLINE inline __attribute__((always_inline))

namespace equikern {
namespace EQK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class S, int L>
struct VecOf {
  typedef S type __attribute__((vector_size(sizeof(S) * L)));
};
template <class S, int L>
using Vec = typename VecOf<S, L>::type;

template <class S, int L>
EQK_INLINE Vec<S, L> load(const S* p) {
  Vec<S, L> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class S, int L>
EQK_INLINE void store(S* p, Vec<S, L> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class To, class From>
EQK_INLINE To same_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "the same bits under another type");
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

// Square roots; a vector of the registers' width in one instruction.
template <class V>
EQK_INLINE V root_lanes(V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64 && sizeof v[0] == 4) return same_bits<V>(_mm512_sqrt_ps(same_bits<__m512>(v)));
  if constexpr (sizeof v == 64 && sizeof v[0] == 8) return same_bits<V>(_mm512_sqrt_pd(same_bits<__m512d>(v)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32 && sizeof v[0] == 4) return same_bits<V>(_mm256_sqrt_ps(same_bits<__m256>(v)));
  if constexpr (sizeof v == 32 && sizeof v[0] == 8) return same_bits<V>(_mm256_sqrt_pd(same_bits<__m256d>(v)));
#endif
  for (size_t k = 0; k < sizeof v / sizeof v[0]; ++k) v[k] = std::sqrt(v[k]);
  return v;
}

template <class S, int L, size_t... I>
EQK_INLINE Vec<S, L> reverse_lanes(Vec<S, L> v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (L - 1 - int(I))...);
}
template <class S, int L>
EQK_INLINE Vec<S, L> reverse_lanes(Vec<S, L> v) {
  return reverse_lanes<S, L>(v, std::make_index_sequence<L>());
}

// --- transposition ---------------------------------------------------------------------------------------------

// Interleaving inside each run of K lanes (16 bytes), which all instruction sets do in one instruction.
template <class S, int L, int K, int kHigh, size_t... I>
EQK_INLINE Vec<S, L> interleave(Vec<S, L> a, Vec<S, L> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (int(I) / K * K + kHigh * K / 2 + int(I) % K / 2 + (I % 2 ? L : 0))...);
}

// M pieces of 16 bytes, `step` elements apart, as one vector.
template <class E, int M>
EQK_INLINE Vec<E, 16 / int(sizeof(E)) * M> load_pieces(const E* p, int64_t step) {
  constexpr int K = 16 / int(sizeof(E));
  if constexpr (M == 1) {
    (void)step;
    return load<E, K>(p);
  }
#if defined(__AVX2__)
  const auto piece = [&](int m) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + m * step)); };
  if constexpr (M == 2) return same_bits<Vec<E, K * M>>(_mm256_inserti128_si256(_mm256_castsi128_si256(piece(0)), piece(1), 1));
#endif
}

// to[i][j] = from[j][i] for K·M rows of `from` by K columns, K elements being 16 bytes.
template <class E, int M>
EQK_INLINE void transpose_tile(E* to, int64_t to_row, const E* from, int64_t from_row) {
  constexpr int K = 16 / int(sizeof(E)), L = K * M;
  constexpr auto lanes = std::make_index_sequence<L>();
  Vec<E, L> r[K], t[K];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) r[k] = load_pieces<E, M>(from + k * from_row, K * from_row);
#pragma GCC unroll 4
  for (int round = 1; round < K; round *= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < K / 2; ++k) {
      t[2 * k] = interleave<E, L, K, 0>(r[k], r[k + K / 2], lanes);
      t[2 * k + 1] = interleave<E, L, K, 1>(r[k], r[k + K / 2], lanes);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) r[k] = t[k];
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) store<E, L>(to + k * to_row, r[k]);
}

// n columns of `from` by m rows, n ≥ K and m ≥ K·M; the last tiles overlap the ones before.
template <class E, int M>
inline void transpose_tiles(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t n, int64_t m) {
  constexpr int64_t K = 16 / int(sizeof(E)), L = K * M, kLine = 4 * K;
  for (int64_t i = 0; i < n; i += kLine) {
    for (int64_t j = 0; j < m; j += L) {  // all of a cache line before the next rows: rows may share cache sets
      const int64_t row = j + L <= m ? j : m - L;
      const E* source = from + row * from_row;
      if (i + kLine <= n) {
        for (int64_t k = 0; k < L; ++k) __builtin_prefetch(source + k * from_row + i + kLine);  // the next i's lines
#pragma GCC unroll 4
        for (int64_t c = i; c < i + kLine; c += K) transpose_tile<E, M>(to + c * to_row + row, to_row, source + c, from_row);
      } else {
        for (int64_t c = i; c < n; c += K) {
          const int64_t col = c + K <= n ? c : n - K;
          transpose_tile<E, M>(to + col * to_row + row, to_row, source + col, from_row);
        }
      }
    }
  }
}

// to[i][j] = from[j][i] with either side's rows in either order (negative strides): n columns of `from` by m rows.
template <class E>
inline void transpose(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t n, int64_t m) {
  constexpr int64_t K = 16 / int(sizeof(E));
#if defined(__AVX2__)
  if (n >= K && m >= 2 * K) return transpose_tiles<E, 2>(to, to_row, from, from_row, n, m);
#endif
  if (n >= K && m >= K) return transpose_tiles<E, 1>(to, to_row, from, from_row, n, m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) to[i * to_row + j] = from[j * from_row + i];
}

// --- conversion ------------------------------------------------------------------------------------------------

// What a dtype accumulates in.
template <class T>
struct Accumulate {
  typedef float type;
};
template <>
struct Accumulate<double> {
  typedef double type;
};
// Integers are compared and counted; the counts of views need 16 bits.
template <>
struct Accumulate<int8_t> { typedef int16_t type; };
template <>
struct Accumulate<uint8_t> { typedef int16_t type; };
template <>
struct Accumulate<int16_t> { typedef int16_t type; };
template <>
struct Accumulate<int32_t> { typedef int32_t type; };
template <>
struct Accumulate<int64_t> { typedef int64_t type; };
template <class T>
using Acc = typename Accumulate<T>::type;

inline float up(float x) { return x; }
inline double up(double x) { return x; }
inline float up(Half x) { return to_float(x); }
inline float up(BFloat16 x) { return to_float(x); }
inline void down(float* p, float x) { *p = x; }
inline void down(double* p, double x) { *p = x; }
inline void down(Half* p, float x) { *p = to_half(x); }
inline void down(BFloat16* p, float x) { *p = to_bfloat16(x); }

template <class T, int L>
EQK_INLINE Vec<Acc<T>, L> load_up(const T* p) {
  if constexpr (sizeof(T) != 2) {
    return load<T, L>(p);
  } else {
    Vec<float, L> v;
#if defined(__AVX512F__)
    if constexpr (L == 16) return same_bits<Vec<float, L>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
#if defined(__F16C__)
    if constexpr (L == 8) return same_bits<Vec<float, L>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    if constexpr (L == 4) return same_bits<Vec<float, L>>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
    for (int k = 0; k < L; ++k) v[k] = up(p[k]);
    return v;
  }
}
template <class T, int L>
EQK_INLINE void store_down(T* p, Vec<Acc<T>, L> v) {
  if constexpr (sizeof(T) != 2) {
    store<T, L>(p, v);
  } else {
#if defined(__AVX512F__)
    if constexpr (L == 16)
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(same_bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (L == 8)
      return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(same_bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
    if constexpr (L == 4)
      return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph(same_bits<__m128>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (int k = 0; k < L; ++k) down(p + k, v[k]);
  }
}

// The bits of bfloat16 in the upper half of each lane, rounded to nearest even; a NaN stays a NaN.
template <int L>
EQK_INLINE Vec<uint32_t, L> round_to_bfloat16(Vec<float, L> v) {
  const auto u = same_bits<Vec<uint32_t, L>>(v);
  const Vec<uint32_t, L> rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return v != v ? u | 0x400000u : rounded;
}

template <int L>
EQK_INLINE bool has_nan(Vec<float, L> a, Vec<float, L> b) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return _mm512_cmp_ps_mask(same_bits<__m512>(a), same_bits<__m512>(b), _CMP_UNORD_Q) != 0;
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return _mm256_movemask_ps(_mm256_cmp_ps(same_bits<__m256>(a), same_bits<__m256>(b), _CMP_UNORD_Q)) != 0;
#endif
#if defined(__SSE2__)
  if constexpr (L == 4) return _mm_movemask_ps(_mm_cmpunord_ps(same_bits<__m128>(a), same_bits<__m128>(b))) != 0;
#endif
  bool found = false;
  for (int k = 0; k < L; ++k) found |= a[k] != a[k] || b[k] != b[k];
  return found;
}

// What write(T*) gives, N elements, past the caches to memory that vectors of N divide: spares reading the lines that are
// overwritten.
template <class T, int N, class Write>
EQK_INLINE void store_past(T* p, const Write& write) {
#if defined(__SSE2__)
  alignas(64) T some[N];
  write(some);
  constexpr int kBytes = N * int(sizeof(T));
#if defined(__AVX512F__)
  if constexpr (kBytes == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_load_si512(some));
#endif
#if defined(__AVX2__)
  if constexpr (kBytes == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(some)));
#endif
  if constexpr (kBytes == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_load_si128(reinterpret_cast<const __m128i*>(some)));
#endif
  write(p);
}

// A run of elements as numbers: kLanes of them in kParts vectors. Two bfloat16 side by side are the two halves of a
// lane, so their numbers are kept apart, even ones in the first vector and odd ones in the second: no shuffle is
// needed to spread them nor to bring them together.
template <class T, int L>
struct Chunk {
  typedef Acc<T> A;
  typedef Vec<A, L> V;
  static constexpr int kParts = 1, kLanes = L;
  V v[1];

  EQK_INLINE static Chunk from(const T* p) { return {{load_up<T, L>(p)}}; }
  EQK_INLINE void to(T* p) const { store_down<T, L>(p, v[0]); }
  EQK_INLINE void past(T* p) const { store_past<T, L>(p, [this](T* to) { this->to(to); }); }
  EQK_INLINE Chunk reversed() const { return {{reverse_lanes<A, L>(v[0])}}; }
};
template <int L>
struct Chunk<BFloat16, L> {
  typedef float A;
  typedef Vec<A, L> V;
  typedef Vec<uint32_t, L> U;
  static constexpr int kParts = 2, kLanes = 2 * L;
  V v[2];

  EQK_INLINE static Chunk from(const BFloat16* p) {
    U u;
    std::memcpy(&u, p, sizeof u);
    return {{same_bits<V>(u << 16), same_bits<V>(u & 0xffff0000u)}};
  }
  EQK_INLINE void to(BFloat16* p) const {
    U low, high;
    if (has_nan<L>(v[0], v[1])) {
      low = round_to_bfloat16<L>(v[0]), high = round_to_bfloat16<L>(v[1]);
    } else {  // what nearly always happens, in half the instructions
      low = same_bits<U>(v[0]), high = same_bits<U>(v[1]);
      low += 0x7fffu + ((low >> 16) & 1u), high += 0x7fffu + ((high >> 16) & 1u);
    }
    low = (low >> 16) | (high & 0xffff0000u);
    std::memcpy(p, &low, sizeof low);
  }
  EQK_INLINE void past(BFloat16* p) const { store_past<BFloat16, 2 * L>(p, [this](BFloat16* to) { this->to(to); }); }
  EQK_INLINE Chunk reversed() const { return {{reverse_lanes<A, L>(v[1]), reverse_lanes<A, L>(v[0])}}; }
};

// Part by part.
template <class C>
EQK_INLINE C operator+(const C& a, const C& b) {
  C r;
  for (int k = 0; k < C::kParts; ++k) r.v[k] = a.v[k] + b.v[k];
  return r;
}
template <class C>
EQK_INLINE C times(const C& a, typename C::A s) {
  C r;
  for (int k = 0; k < C::kParts; ++k) r.v[k] = a.v[k] * s;
  return r;
}
inline float times(float a, float s) { return a * s; }
inline double times(double a, double s) { return a * s; }
// Numbers in the order of memory, whatever the chunk's own is.
template <class V, int L, int kFirst, int kStep, size_t... I>
EQK_INLINE V picked(V a, V b, std::index_sequence<I...>) {
  if constexpr (kStep == 0) return __builtin_shufflevector(a, b, (kFirst + int(I) / 2 + int(I) % 2 * L)...);
  return __builtin_shufflevector(a, b, (kFirst + int(I) * kStep)...);
}
template <class C>
EQK_INLINE C fetch_in_order(const typename C::A* p) {
  constexpr int L = C::kLanes / C::kParts;
  typedef typename C::V V;
  if constexpr (C::kParts == 1) {
    return {{load<typename C::A, L>(p)}};
  } else {
    const V low = load<typename C::A, L>(p), high = load<typename C::A, L>(p + L);
    return {{picked<V, L, 0, 2>(low, high, std::make_index_sequence<L>()), picked<V, L, 1, 2>(low, high, std::make_index_sequence<L>())}};
  }
}
template <class C>
EQK_INLINE void keep_in_order(typename C::A* p, const C& c) {
  constexpr int L = C::kLanes / C::kParts;
  typedef typename C::V V;
  if constexpr (C::kParts == 1) {
    store<typename C::A, L>(p, c.v[0]);
  } else {
    store<typename C::A, L>(p, picked<V, L, 0, 0>(c.v[0], c.v[1], std::make_index_sequence<L>()));
    store<typename C::A, L>(p + L, picked<V, L, L / 2, 0>(c.v[0], c.v[1], std::make_index_sequence<L>()));
  }
}
// Numbers in a chunk's own order, for scratch memory.
template <class C>
EQK_INLINE C fetch(const typename C::A* p) {
  constexpr int L = C::kLanes / C::kParts;
  C r;
  for (int k = 0; k < C::kParts; ++k) r.v[k] = load<typename C::A, L>(p + k * L);
  return r;
}
template <class C>
EQK_INLINE void keep(typename C::A* p, const C& c) {
  constexpr int L = C::kLanes / C::kParts;
  for (int k = 0; k < C::kParts; ++k) store<typename C::A, L>(p + k * L, c.v[k]);
}

template <class T>
constexpr int kLanesOf = kVectorBytes / int(sizeof(Acc<T>));
template <class T>
using Widest = Chunk<T, kLanesOf<T>>;

// --- stores past the caches ------------------------------------------------------------------------------------

// For results too large to stay in the caches: spares reading the lines that are overwritten.
inline void stream(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  int64_t head = (64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63;
  if (bytes >= 128) {
    if (head) std::memcpy(to, from, head);
    int64_t k = head;
    for (; k + 64 <= bytes; k += 64) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
#elif defined(__AVX2__)
      for (int b = 0; b < 64; b += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k + b), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k + b)));
#else
      for (int b = 0; b < 64; b += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + k + b), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k + b)));
#endif
    }
    if (k < bytes) std::memcpy(to + k, from + k, bytes - k);
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace EQK_ISA
}  // namespace equikern
