// Planes of at most 64 elements of 2 or 4 bytes fit into two or four AVX-512 registers: a view is a few permutations
// by table. Elsewhere, and for few planes, the strided copies of views.h serve.
#pragma once

#include <vector>

#include "views.h"

namespace equikern {
namespace EQK_ISA {

inline bool is_small(const Problem& p) {
  const auto dense = [&](const Side& s) { return s.col == 1 && s.row == p.W; };
  return p.V == 1 && dense(p.in) && dense(p.source(p.views - 1)) && p.H * p.W <= 64 && p.H * p.W > 1;
}

#if defined(__AVX512BW__)

// The registers of one plane.
template <class E>
struct SmallShape {
  static constexpr int kLanes = 64 / int(sizeof(E)), kMost = int(sizeof(E));  // 2 or 4 registers
  int used;
  uint64_t last;  // the lanes in use of the last register

  explicit SmallShape(int64_t elements) {
    used = int((elements + kLanes - 1) / kLanes);
    const int rest = int(elements) - (used - 1) * kLanes;
    last = rest == 64 ? ~uint64_t(0) : (uint64_t(1) << rest) - 1;
  }
  static __m512i load_some(uint64_t mask, const E* from) {
    if constexpr (sizeof(E) == 4) return _mm512_maskz_loadu_epi32(__mmask16(mask), from);
    return _mm512_maskz_loadu_epi16(__mmask32(mask), from);
  }
  static void store_some(E* to, uint64_t mask, __m512i v) {
    if constexpr (sizeof(E) == 4)
      _mm512_mask_storeu_epi32(to, __mmask16(mask), v);
    else
      _mm512_mask_storeu_epi16(to, __mmask32(mask), v);
  }
  template <int kUsed>
  EQK_INLINE void load(const E* from, __m512i (&r)[kUsed]) const {
#pragma GCC unroll 4
    for (int k = 0; k + 1 < kUsed; ++k) r[k] = _mm512_loadu_si512(from + k * kLanes);
    r[kUsed - 1] = load_some(last, from + (kUsed - 1) * kLanes);
  }
  // Unless it is `final`, the store may run past the plane: the stores of the planes behind it repair that.
  template <int kUsed>
  EQK_INLINE void store(E* to, const __m512i (&r)[kUsed], bool final) const {
#pragma GCC unroll 4
    for (int k = 0; k + 1 < kUsed; ++k) _mm512_storeu_si512(to + k * kLanes, r[k]);
    if (final)
      store_some(to + (kUsed - 1) * kLanes, last, r[kUsed - 1]);
    else
      _mm512_storeu_si512(to + (kUsed - 1) * kLanes, r[kUsed - 1]);
  }
};

template <class E>
struct SmallView {
  static constexpr bool kAvailable = sizeof(E) == 2 || sizeof(E) == 4;
  typedef SmallShape<E> Shape;
  Shape shape;
  int64_t elements;
  bool identity;
  __m512i table[4];
  uint64_t upper[4] = {};  // lanes read from the second pair of registers

  SmallView(const Problem& p, unsigned code) : shape(p.H * p.W), elements(p.H * p.W), identity(code == 0) {
    E lanes[256 / sizeof(E)] = {};
    for (int64_t i = 0, k = 0; i < p.Ho; ++i) {
      for (int64_t j = 0; j < p.Wo; ++j, ++k) {
        const Point s = source_point(code, i, j, p.H, p.W);
        const int64_t source = s.row * p.W + s.col;
        lanes[k] = E(source % (2 * Shape::kLanes));
        if (source >= 2 * Shape::kLanes) upper[k / Shape::kLanes] |= uint64_t(1) << (k % Shape::kLanes);
      }
    }
    std::memcpy(table, lanes, sizeof table);
  }

  template <int kUsed>
  EQK_INLINE __m512i permuted(const __m512i (&r)[kUsed], int k) const {
    if constexpr (sizeof(E) == 2) {
      return _mm512_permutex2var_epi16(r[0], table[k], r[kUsed > 1]);
    } else {
      const __m512i low = _mm512_permutex2var_epi32(r[0], table[k], r[kUsed > 1]);
      if constexpr (kUsed < 3) return low;
      return _mm512_mask_blend_epi32(__mmask16(upper[k]), low, _mm512_permutex2var_epi32(r[kUsed > 2 ? 2 : 0], table[k], r[kUsed > 3 ? 3 : 0]));
    }
  }

  template <int kUsed>
  void copy_used(E* to, int64_t to_plane, const E* from, int64_t from_plane, int64_t planes) const {
    const SmallView view = *this;  // the tables stay in registers
    for (int64_t n = 0; n < planes; ++n, to += to_plane, from += from_plane) {
      __m512i r[kUsed], v[kUsed];
      view.shape.template load<kUsed>(from, r);
#pragma GCC unroll 4
      for (int k = 0; k < kUsed; ++k) v[k] = view.permuted(r, k);
      view.shape.template store<kUsed>(to, v, to_plane != view.elements || (planes - n) * to_plane < kUsed * Shape::kLanes);
    }
  }
  void copy(E* to, int64_t to_plane, const E* from, int64_t from_plane, int64_t planes) const {
    if (shape.used == 1) return copy_used<1>(to, to_plane, from, from_plane, planes);
    if (shape.used == 2) return copy_used<2>(to, to_plane, from, from_plane, planes);
    if constexpr (sizeof(E) == 4) {
      if (shape.used == 3) return copy_used<3>(to, to_plane, from, from_plane, planes);
      return copy_used<4>(to, to_plane, from, from_plane, planes);
    }
  }
};
#else
template <class E>
struct SmallView {
  static constexpr bool kAvailable = false;
  SmallView(const Problem&, unsigned) {}
  void copy(E*, int64_t, const E*, int64_t, int64_t) const {}
};
#endif

// The views' tables, where they serve; making them takes about as long as moving a few dozen planes.
template <class E>
struct SmallViews {
  std::vector<SmallView<E>> all;
  explicit SmallViews(const Problem& p) {
    if (!SmallView<E>::kAvailable || !is_small(p) || p.permutes() || p.planes() < 32) return;
    all.reserve(p.views);
    for (int g = 0; g < p.views; ++g) all.emplace_back(p, p.code(g));
  }
  const SmallView<E>* operator[](int g) const { return all.empty() ? nullptr : &all[g]; }
};

}  // namespace EQK_ISA
}  // namespace equikern
