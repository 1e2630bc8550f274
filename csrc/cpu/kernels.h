// The four kernels for one instruction set; every translation unit that includes this sets EQK_ISA and its flags.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "views.h"

namespace equikern {
namespace EQK_ISA {

constexpr int64_t kBlock = 65536;    // elements of a plane that one core's L2 holds beside the result
constexpr int64_t kBand = 8192;      // elements that are handled while they are in L1
constexpr int64_t kStreamBytes = 12 << 20;

// How a call is cut into units of work; by shapes only, so that sums do not depend on the number of threads.
struct Units {
  int64_t run, chunk, chunks, rows, cols, across, down, count;

  // `h`, `w`: the plane whose blocks are counted.
  Units(const Problem& p, int64_t h, int64_t w) {
    const int64_t planes = p.planes(), plane = h * w * p.V;
    run = p.dims ? p.size[p.dims - 1] : 1;
    const bool own = (p.weights || p.dots || p.scores) && p.planes_per_weight % run != 0;
    const bool owned = p.index && p.planes_per_index % run != 0;
    chunk = own || owned || plane == 0 ? 1 : std::max<int64_t>(1, std::min({kBand / plane, run, std::max(planes / 8, kBand / 4 / plane)}));
    chunks = (run + chunk - 1) / chunk;
    rows = h, cols = w;
    if (plane > kBlock) {
      rows = std::min<int64_t>(h, 128);
      cols = std::min<int64_t>(w, std::max<int64_t>(16, 32768 / (rows * p.V)));
    }
    // A last block that would be narrower than a tile is joined to the one before.
    down = std::max<int64_t>(1, h / rows), across = std::max<int64_t>(1, w / cols);
    count = planes / std::max<int64_t>(run, 1) * chunks * down * across;
  }
};

struct Unit {
  int64_t plane, planes, r0, r1, c0, c1;
};

inline Unit unit_at(const Units& u, int64_t n, int64_t h, int64_t w) {
  Unit t;
  const int64_t c = n % u.across, d = n / u.across % u.down, k = n / u.across / u.down;
  t.plane = k / u.chunks * u.run + k % u.chunks * u.chunk;
  t.planes = std::min(u.chunk, u.run - k % u.chunks * u.chunk);
  t.r0 = d * u.rows, t.r1 = d + 1 == u.down ? h : t.r0 + u.rows;
  t.c0 = c * u.cols, t.c1 = c + 1 == u.across ? w : t.c0 + u.cols;
  return t;
}

template <class E>
inline E* at(const Problem& p, const Side& side, int64_t plane) {
  int64_t offset = 0;
  for (int d = p.dims - 1; d >= 0; --d) {
    offset += plane % p.size[d] * side.outer[d];
    plane /= p.size[d];
  }
  return reinterpret_cast<E*>(side.data) + offset;
}

inline int64_t next_plane(const Problem& p, const Side& side) {
  return p.dims ? side.outer[p.dims - 1] : 0;
}

inline void for_units(const Problem& p, const Units& u, int64_t work, void (*body)(const Problem&, const Units&, int64_t, void*), void* shared) {
  const int threads = work < 32768 ? 1 : int(std::min<int64_t>(p.threads, u.count));
  if (threads <= 1) {
    for (int64_t n = 0; n < u.count; ++n) body(p, u, n, shared);
    stream_fence();
    return;
  }
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < u.count; ++n) body(p, u, n, shared);
    stream_fence();
  }
}

// Scratch of the calling thread; slots are disjoint. Freed with the thread.
inline char* scratch(int slot, int64_t bytes) {
  static thread_local std::unique_ptr<char[]> memory[4];
  static thread_local int64_t sizes[4] = {};
  if (sizes[slot] < bytes + 256) {
    memory[slot].reset(new char[bytes + 256]);
    sizes[slot] = bytes + 256;
  }
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory[slot].get()) + 63) & ~uintptr_t(63));
}

inline double weight(const Problem& p, int g, int64_t plane) {
  if (!p.weights) return 1.0;
  const int64_t k = g * p.weight_columns + plane / p.planes_per_weight;
  return p.dtype == Dtype::kFloat64 ? static_cast<const double*>(p.weights)[k] : static_cast<const float*>(p.weights)[k];
}

inline bool rows_fit(const Problem& p, const Side& s) { return s.col == p.V || (p.V == 1 && s.col == 1); }

// Write a band to its place in a result.
template <class E>
inline void put(const Problem& p, const Side& side, E* to, int64_t to_plane, const Band<E>& band, const Region& r, bool streaming) {
  const int64_t rows = r.i1 - r.i0, pixels = r.j1 - r.j0, length = pixels * p.V;
  to += r.i0 * side.row + r.j0 * side.col;
  if (!rows_fit(p, side)) {
    for (int64_t k = 0; k < r.planes; ++k)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < pixels; ++j)
          for (int64_t v = 0; v < p.V; ++v)
            to[k * to_plane + i * side.row + j * side.col + v] = band.data[k * band.plane + i * band.row + j * p.V + v];
    return;
  }
  const bool flat_rows = rows == 1 || (side.row == length && band.row == length);
  const bool flat = flat_rows && (r.planes == 1 || (to_plane == rows * length && band.plane == rows * length));
  const int64_t planes = flat ? 1 : r.planes, lines = flat_rows ? 1 : rows;
  const int64_t bytes = (flat ? r.planes * rows * length : flat_rows ? rows * length : length) * int64_t(sizeof(E));
  for (int64_t k = 0; k < planes; ++k) {
    for (int64_t i = 0; i < lines; ++i) {
      char* dst = reinterpret_cast<char*>(to + k * to_plane + i * side.row);
      const char* src = reinterpret_cast<const char*>(band.data + k * band.plane + i * band.row);
      if (streaming)
        stream(dst, src, bytes);
      else
        std::memcpy(dst, src, bytes);
    }
  }
}

// Rows of a region handled at a time; never a rest too low for a tile.
inline int64_t band_rows(int64_t rows, int64_t row_elements, int64_t planes) {
  int64_t n = std::max<int64_t>(16, kBand / std::max<int64_t>(1, row_elements * planes) / 16 * 16);
  return n >= rows || rows - n < 16 ? rows : n;
}
template <class F>
inline void for_bands(const Region& whole, int64_t V, F body) {
  const int64_t rows = whole.i1 - whole.i0, n = band_rows(rows, (whole.j1 - whole.j0) * V, whole.planes);
  for (int64_t i = whole.i0; i < whole.i1;) {
    int64_t end = i + n;
    if (whole.i1 - end < 16) end = whole.i1;
    body(Region{whole.planes, i, end, whole.j0, whole.j1});
    i = end;
  }
}

// Where a view shows the source block [a0, a1) × [b0, b1).
inline Region region_of(const Problem& p, unsigned code, const Unit& t) {
  const int64_t a0 = code & kReverseH ? p.H - t.r1 : t.r0, a1 = a0 + t.r1 - t.r0;
  const int64_t b0 = code & kReverseW ? p.W - t.c1 : t.c0, b1 = b0 + t.c1 - t.c0;
  return code & kTranspose ? Region{t.planes, b0, b1, a0, a1} : Region{t.planes, a0, a1, b0, b1};
}

template <class E>
struct Tables {
  std::vector<SmallPlane<E>> all;
  explicit Tables(const Problem& p) {
    if (!SmallPlane<E>::available || !is_small(p) || p.planes() < 32) return;  // too few to pay for the tables
    all.reserve(p.views);
    for (int g = 0; g < p.views; ++g) all.emplace_back(p, p.codes[g]);
  }
  const SmallPlane<E>* operator[](int g) const { return all.empty() ? nullptr : &all[g]; }
};

inline int64_t region_elements(const Problem& p, const Region& r) { return r.planes * (r.i1 - r.i0) * (r.j1 - r.j0) * p.V; }

template <class T>
inline void scale_run(T* to, const T* from, int64_t n, Acc<T> s) {
  constexpr int L = 16;
  int64_t k = 0;
  for (; k + L <= n; k += L) Convert<T, L>::down(to + k, Convert<T, L>::up(from + k) * s);
  for (; k < n; ++k) down(to + k, up(from[k]) * s);
}

template <int kSize>
struct BitsOfSize;
template <>
struct BitsOfSize<1> { typedef uint8_t type; };
template <>
struct BitsOfSize<2> { typedef uint16_t type; };
template <>
struct BitsOfSize<4> { typedef uint32_t type; };
template <>
struct BitsOfSize<8> { typedef uint64_t type; };
template <class T>
using Bits = typename BitsOfSize<sizeof(T)>::type;  // bands carry bits; arithmetic looks at them as T

// body(offset in the region's dense layout, offset in the band, number of elements) over the longest runs.
template <class E, class F>
inline void for_runs(const Problem& p, const Band<E>& band, const Region& r, F body) {
  const int64_t rows = r.i1 - r.i0, length = (r.j1 - r.j0) * p.V;
  const bool flat = (rows == 1 || band.row == length) && (r.planes == 1 || band.plane == rows * length);
  if (flat) return body(int64_t(0), int64_t(0), r.planes * rows * length);
  for (int64_t k = 0; k < r.planes; ++k)
    for (int64_t i = 0; i < rows; ++i) body((k * rows + i) * length, k * band.plane + i * band.row, length);
}

template <class T>
inline Band<Bits<T>> dense_band(const Problem& p, const Region& r, T* stage) {
  const int64_t length = (r.j1 - r.j0) * p.V;
  return {reinterpret_cast<Bits<T>*>(stage), (r.i1 - r.i0) * length, length};
}

// A band times a number, as a band in `stage`.
template <class T>
inline Band<Bits<T>> scaled(const Problem& p, const Band<Bits<T>>& band, const Region& r, Acc<T> s, T* stage) {
  for_runs(p, band, r, [&](int64_t to, int64_t from, int64_t n) {
    scale_run<T>(stage + to, reinterpret_cast<const T*>(band.data) + from, n, s);
  });
  return dense_band<T>(p, r, stage);
}

struct Call {
  bool streaming;
  const void* tables;
};

// T: a float type where something is multiplied, unsigned integers where bits are moved.
template <class T, bool kExact>
void orbit_unit(const Problem& p, const Units& u, int64_t n, void* shared) {
  typedef Bits<T> E;
  const Call& call = *static_cast<const Call*>(shared);
  const Tables<E>& tables = *static_cast<const Tables<E>*>(call.tables);
  const Unit t = unit_at(u, n, p.H, p.W);
  const E* from = at<E>(p, p.in, t.plane);
  E* to = at<E>(p, p.out, t.plane);
  const int64_t from_plane = next_plane(p, p.in), to_plane = next_plane(p, p.out);
  const int64_t chosen = p.index ? p.index[t.plane / p.planes_per_index] : -1;
  for (int g = 0; g < p.views; ++g) {
    const double s = kExact ? 1.0 : p.scale * weight(p, g, t.plane);
    for_bands(region_of(p, p.codes[g], t), p.V, [&](const Region& r) {
      const int64_t bytes = region_elements(p, r) * int64_t(sizeof(E));
      E* stage = reinterpret_cast<E*>(scratch(0, bytes));
      Band<E> band = dense_band<E>(p, r, stage);
      if (p.index && chosen != g) {
        std::memset(stage, 0, bytes);
      } else {
        band = view_band<E>(p, from, from_plane, p.codes[g], r, stage, call.streaming && kExact, tables[g]);
        if constexpr (!kExact) band = scaled<T>(p, band, r, Acc<T>(s), reinterpret_cast<T*>(scratch(1, bytes)));
      }
      put<E>(p, p.out, to + g * p.out.group, to_plane, band, r, call.streaming);
    });
  }
}

template <class T, bool kExact>
void orbit_typed(const Problem& p) {
  const Tables<Bits<T>> tables(p);
  const int64_t work = p.views * p.planes() * p.H * p.W * p.V;
  Call call{work * int64_t(sizeof(T)) >= kStreamBytes, &tables};
  for_units(p, Units(p, p.H, p.W), work, orbit_unit<T, kExact>, &call);
}

// One view for every plane, the one its index names.
template <class E>
void select_unit(const Problem& p, const Units& u, int64_t n, void* shared) {
  const Call& call = *static_cast<const Call*>(shared);
  const Tables<E>& tables = *static_cast<const Tables<E>*>(call.tables);
  const Unit t = unit_at(u, n, p.Ho, p.Wo);
  int64_t g = p.index[t.plane / p.planes_per_index];
  g = std::min<int64_t>(std::max<int64_t>(g, 0), p.views - 1);
  const E* from = at<E>(p, p.in, t.plane) + g * p.in.group;
  E* to = at<E>(p, p.out, t.plane);
  for_bands(Region{t.planes, t.r0, t.r1, t.c0, t.c1}, p.V, [&](const Region& r) {
    E* stage = reinterpret_cast<E*>(scratch(0, region_elements(p, r) * int64_t(sizeof(E))));
    Band<E> band = view_band<E>(p, from, next_plane(p, p.in), p.codes[g], r, stage, call.streaming, tables[g]);
    put<E>(p, p.out, to, next_plane(p, p.out), band, r, call.streaming);
  });
}

template <class E>
void select_typed(const Problem& p) {
  const Tables<E> tables(p);
  const int64_t work = p.planes() * p.Ho * p.Wo * p.V;
  if (work == 0) return;
  Call call{work * int64_t(sizeof(E)) >= kStreamBytes, &tables};
  for_units(p, Units(p, p.Ho, p.Wo), work, select_unit<E>, &call);
}

template <class S>
void choose_views(const Problem& p) {
  const S* scores = static_cast<const S*>(p.scores);
  for (int64_t c = 0; c < p.weight_columns; ++c) {
    int best = 0;
    S least = scores[c];
    for (int g = 1; g < p.views; ++g) {
      S s = scores[g * p.weight_columns + c];
      // NaN never wins: it is replaced by anything that is not NaN, and replaces nothing.
      if ((p.minimum ? s < least : s > least) || (std::isnan(least) && !std::isnan(s))) best = g, least = s;
    }
    p.index[c] = best;
  }
}

// The weighted view written out and its product with y summed, from one read of both.
template <class T>
inline double dot_run(const T* a, const T* b, int64_t n) {
  constexpr int L = 16;
  typedef Acc<T> A;
  double sum = 0;
  int64_t k = 0;
  while (k + L <= n) {
    Vec<A, L> part0 = {}, part1 = {};
    const int64_t end = std::min(n - L, k + 32 * L - L);  // short sums in A, long ones in double
    for (; k + L <= end; k += 2 * L) {
      part0 += Convert<T, L>::up(a + k) * Convert<T, L>::up(b + k);
      part1 += Convert<T, L>::up(a + k + L) * Convert<T, L>::up(b + k + L);
    }
    if (k <= end) {
      part0 += Convert<T, L>::up(a + k) * Convert<T, L>::up(b + k);
      k += L;
    }
    part0 += part1;
    Vec<double, L> wide = __builtin_convertvector(part0, Vec<double, L>);
    double total = 0;
    for (int l = 0; l < L; ++l) total += wide[l];
    sum += total;
  }
  for (; k < n; ++k) sum += double(up(a[k])) * double(up(b[k]));
  return sum;
}

struct DotCall {
  Call call;
  double* parts;  // (units, views)
};

template <class T>
void dot_unit(const Problem& p, const Units& u, int64_t n, void* shared) {
  typedef Bits<T> E;
  const DotCall& d = *static_cast<const DotCall*>(shared);
  const Tables<E>& tables = *static_cast<const Tables<E>*>(d.call.tables);
  const Unit t = unit_at(u, n, p.H, p.W);
  const E* from = at<E>(p, p.in, t.plane);
  const E* other = at<E>(p, p.other, t.plane);
  E* to = p.out.data ? at<E>(p, p.out, t.plane) : nullptr;
  for (int g = 0; g < p.views; ++g) {
    const Acc<T> s = Acc<T>(weight(p, g, t.plane));
    double sum = 0;
    for_bands(region_of(p, p.codes[g], t), p.V, [&](const Region& r) {
      const int64_t bytes = region_elements(p, r) * int64_t(sizeof(E)), rows = r.i1 - r.i0, length = (r.j1 - r.j0) * p.V;
      Band<E> band = view_band<E>(p, from, next_plane(p, p.in), p.codes[g], r, reinterpret_cast<E*>(scratch(0, bytes)), false, tables[g]);
      const E* y = other + g * p.other.group + r.i0 * p.other.row + r.j0 * p.other.col;
      const int64_t y_plane = next_plane(p, p.other);
      Band<E> against{y, y_plane, p.other.row};
      if (!rows_fit(p, p.other)) {  // any other strides: gather first
        E* dense = reinterpret_cast<E*>(scratch(2, bytes));
        E* w = dense;
        for (int64_t k = 0; k < r.planes; ++k)
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = r.j0; j < r.j1; ++j)
              for (int64_t v = 0; v < p.V; ++v) *w++ = y[k * y_plane + i * p.other.row + (j - r.j0) * p.other.col + v];
        against = dense_band<E>(p, r, dense);
      }
      const bool flat = (rows == 1 || (band.row == length && against.row == length)) &&
                        (r.planes == 1 || (band.plane == rows * length && against.plane == rows * length));
      const int64_t planes = flat ? 1 : r.planes, lines = flat ? 1 : rows, run = flat ? r.planes * rows * length : length;
      for (int64_t k = 0; k < planes; ++k)
        for (int64_t i = 0; i < lines; ++i)
          sum += dot_run<T>(reinterpret_cast<const T*>(band.data) + k * band.plane + i * band.row,
                            reinterpret_cast<const T*>(against.data) + k * against.plane + i * against.row, run);
      if (to) {
        band = scaled<T>(p, band, r, s, reinterpret_cast<T*>(scratch(1, bytes)));
        put<E>(p, p.out, to + g * p.out.group, next_plane(p, p.out), band, r, d.call.streaming);
      }
    });
    d.parts[n * p.views + g] = sum;
  }
}

template <class T>
void dot_typed(const Problem& p) {
  const Tables<Bits<T>> tables(p);
  const int64_t work = p.views * p.planes() * p.H * p.W * p.V;
  if (work == 0) {
    std::fill_n(static_cast<Acc<T>*>(p.dots), p.views * p.weight_columns, Acc<T>(0));
    return;
  }
  const Units u(p, p.H, p.W);
  std::vector<double> parts(u.count * p.views);
  DotCall call{{p.out.data && work * int64_t(sizeof(T)) >= kStreamBytes, &tables}, parts.data()};
  for_units(p, u, work, dot_unit<T>, &call);
  std::vector<double> sums(p.views * p.weight_columns);
  for (int64_t n = 0; n < u.count; ++n) {
    const int64_t column = unit_at(u, n, p.H, p.W).plane / p.planes_per_weight;
    for (int g = 0; g < p.views; ++g) sums[g * p.weight_columns + column] += parts[n * p.views + g];
  }
  for (size_t k = 0; k < sums.size(); ++k) static_cast<Acc<T>*>(p.dots)[k] = Acc<T>(sums[k]);
}

}  // namespace EQK_ISA
}  // namespace equikern
