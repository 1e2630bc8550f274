// Small vectors of L lanes: loads, stores, reversal, transposition, and conversion to the accumulator's type.
// Written with the compilers' vector extensions, so that one source serves SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../dtypes.h"

// Vectors wider than the registers are passed in memory; nothing outside this translation unit calls these.
#pragma GCC diagnostic ignored "-Wpsabi"

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
inline Vec<S, L> load(const S* p) {
  Vec<S, L> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class S, int L>
inline void store(S* p, Vec<S, L> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class S, int L, size_t... I>
inline Vec<S, L> reverse_lanes(Vec<S, L> v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (L - 1 - int(I))...);
}
template <class S, int L>
inline Vec<S, L> reverse_lanes(Vec<S, L> v) {
  return reverse_lanes<S, L>(v, std::make_index_sequence<L>());
}

template <class S, int L, size_t... I>
inline Vec<S, L> interleave_low(Vec<S, L> a, Vec<S, L> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (int(I) / 2 + (I % 2 ? L : 0))...);
}
template <class S, int L, size_t... I>
inline Vec<S, L> interleave_high(Vec<S, L> a, Vec<S, L> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (L / 2 + int(I) / 2 + (I % 2 ? L : 0))...);
}

// In place, log2(L) rounds of perfect shuffles.
template <class S, int L>
inline void transpose(Vec<S, L> (&r)[L]) {
  constexpr auto lanes = std::make_index_sequence<L>();
  Vec<S, L> t[L];
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      t[2 * i] = interleave_low<S, L>(r[i], r[i + L / 2], lanes);
      t[2 * i + 1] = interleave_high<S, L>(r[i], r[i + L / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = t[i];
  }
}

// What a dtype accumulates in, and its vectors of that.
template <class T>
struct Accumulate {
  typedef float type;
};
template <>
struct Accumulate<double> {
  typedef double type;
};
template <class T>
using Acc = typename Accumulate<T>::type;

template <class T, int L>
struct Convert;

template <int L>
struct Convert<float, L> {
  static Vec<float, L> up(const float* p) { return load<float, L>(p); }
  static void down(float* p, Vec<float, L> v) { store<float, L>(p, v); }
};
template <int L>
struct Convert<double, L> {
  static Vec<double, L> up(const double* p) { return load<double, L>(p); }
  static void down(double* p, Vec<double, L> v) { store<double, L>(p, v); }
};
template <int L>
struct Convert<BFloat16, L> {
  static Vec<float, L> up(const BFloat16* p) {
    Vec<uint32_t, L> wide = __builtin_convertvector((load<uint16_t, L>(reinterpret_cast<const uint16_t*>(p))), Vec<uint32_t, L>) << 16;
    Vec<float, L> v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
  }
  static void down(BFloat16* p, Vec<float, L> v) {
    Vec<uint32_t, L> u;
    std::memcpy(&u, &v, sizeof u);
    Vec<uint32_t, L> rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    Vec<uint32_t, L> quiet = (u >> 16) | 0x40u;
    Vec<int32_t, L> nan = v != v;
    Vec<uint32_t, L> mask;
    std::memcpy(&mask, &nan, sizeof mask);
    rounded = (rounded & ~mask) | (quiet & mask);
    store<uint16_t, L>(reinterpret_cast<uint16_t*>(p), __builtin_convertvector(rounded, Vec<uint16_t, L>));
  }
};
template <int L>
struct Convert<Half, L> {
  static Vec<float, L> up(const Half* p) {
    Vec<float, L> v;
#if defined(__F16C__)
    if constexpr (L == 4) {
      __m128 w = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
      std::memcpy(&v, &w, sizeof v);
      return v;
    } else {
      float* lanes = reinterpret_cast<float*>(&v);
      for (int k = 0; k < L; k += 8) {
        __m256 w = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + k)));
        std::memcpy(lanes + k, &w, sizeof w);
      }
      return v;
    }
#else
    for (int k = 0; k < L; ++k) v[k] = to_float(p[k]);
    return v;
#endif
  }
  static void down(Half* p, Vec<float, L> v) {
#if defined(__F16C__)
    if constexpr (L == 4) {
      __m128 w;
      std::memcpy(&w, &v, sizeof w);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT));
    } else {
      const float* lanes = reinterpret_cast<const float*>(&v);
      for (int k = 0; k < L; k += 8) {
        __m256 w;
        std::memcpy(&w, lanes + k, sizeof w);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + k), _mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT));
      }
    }
#else
    for (int k = 0; k < L; ++k) p[k] = to_half(v[k]);
#endif
  }
};

inline float up(float x) { return x; }
inline double up(double x) { return x; }
inline float up(Half x) { return to_float(x); }
inline float up(BFloat16 x) { return to_float(x); }
inline void down(float* p, float x) { *p = x; }
inline void down(double* p, double x) { *p = x; }
inline void down(Half* p, float x) { *p = to_half(x); }
inline void down(BFloat16* p, float x) { *p = to_bfloat16(x); }

// Copy past the caches: for results too large to stay there, which spares reading the lines that are overwritten.
inline void stream(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  int64_t head = (64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63;
  if (bytes >= 128) {
    std::memcpy(to, from, head);
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
    std::memcpy(to + k, from + k, bytes - k);
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
