// How a call is cut into units of work for the threads, and what every kernel needs inside of one.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "views.h"

namespace equikern {
namespace EQK_ISA {

// Bytes of the last-level cache of the first CPU. Not sysconf's, which multiplies the cache of some AMD CPUs.
inline int64_t last_level_cache() {
  int64_t size = 0;
  char unit = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%" SCNd64 "%c", &size, &unit) < 2) size = 0;
    std::fclose(file);
  }
  size *= unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : 1;
  return std::min(std::max(size, kLeastCache), kMostCache);
}

// Whether a call that reads and writes so many bytes should write past the caches, which could not hold them.
inline bool past_caches(int64_t bytes) {
  static const int64_t limit = last_level_cache();
  return bytes >= limit;
}

// Planes of one outer run are taken `chunk` at a time, planes larger than kPlane in blocks of rows × cols. By shapes
// only, so that sums do not depend on the number of threads.
struct Units {
  int64_t run, chunk, chunks, rows, cols, across, down, count;

  // `h`, `w`: the plane whose blocks are counted. Planes with an index of their own may share a unit that `looks` it up.
  Units(const Problem& p, int64_t h, int64_t w, bool looks = false) {
    const int64_t planes = p.planes(), plane = h * w * p.V;
    run = p.dims ? std::max<int64_t>(1, p.size[p.dims - 1]) : 1;
    const bool own = (p.weights || p.dots || p.scores) && p.planes_per_weight % run != 0;
    const bool owned = p.index && !looks && p.planes_per_index % run != 0;
    const bool mixed = p.channels_of && p.channel_planes % run != 0;
    chunk = own || owned || mixed || plane == 0 ? 1 : std::max<int64_t>(1, std::min({kBand / 4 / plane, run, planes / 8}));
    chunks = (run + chunk - 1) / chunk;
    rows = std::max<int64_t>(1, h), cols = std::max<int64_t>(1, w);
    if (plane > kPlane) {
      rows = std::min(h, kPartRows);
      cols = std::min<int64_t>(w, std::max<int64_t>(16, kPart / (rows * p.V)));
    }
    // A last block that would be narrower than a tile is joined to the one before.
    down = std::max<int64_t>(1, h / rows), across = std::max<int64_t>(1, w / cols);
    count = plane == 0 ? 0 : planes / run * chunks * down * across;
  }
};

struct Unit {
  int64_t plane, planes, r0, r1, c0, c1;

  Region region() const { return {planes, r0, r1, c0, c1}; }
};

inline Unit unit_at(const Units& u, int64_t n, int64_t h, int64_t w) {
  Unit t;
  int64_t c = 0, d = 0, k = n;
  if (u.across * u.down > 1) c = n % u.across, d = n / u.across % u.down, k = n / u.across / u.down;
  const int64_t outer = k / u.chunks, first = (k - outer * u.chunks) * u.chunk;
  t.plane = outer * u.run + first;
  t.planes = std::min(u.chunk, u.run - first);
  t.r0 = d * u.rows, t.r1 = d + 1 == u.down ? h : t.r0 + u.rows;
  t.c0 = c * u.cols, t.c1 = c + 1 == u.across ? w : t.c0 + u.cols;
  return t;
}

// body(first plane of the unit, planes, view) for those that have one index.
template <class F>
inline void for_chosen(const Problem& p, const Unit& t, const F& body) {
  const int64_t per = p.planes_per_index;
  int64_t column = t.plane / per, last = (column + 1) * per - t.plane;
  for (int64_t first = 0; first < t.planes; first = last, last += per, ++column)
    body(first, std::min(last, t.planes) - first, p.chosen(column));
}

template <class E>
inline E* at(const Problem& p, const Side& side, int64_t plane) {
  int64_t offset = 0;
  for (int d = p.dims - 1; d > 0; --d) {
    const int64_t rest = plane / p.size[d];
    offset += (plane - rest * p.size[d]) * side.outer[d];
    plane = rest;
  }
  if (p.dims) offset += plane * side.outer[0];
  return reinterpret_cast<E*>(side.data) + offset;
}

inline int64_t next_plane(const Problem& p, const Side& side) { return p.dims ? side.outer[p.dims - 1] : 0; }

// The entry of channels_of for a plane of a field.
inline int32_t channel_of(const Problem& p, int64_t plane, int g) {
  return p.channels_of[p.view(g) * p.channels + plane / p.channel_planes % p.channels];
}
inline bool negates(const Problem& p, int64_t plane, int g) { return p.signs && channel_of(p, plane, g) < 0; }

// From a plane's place among those of view 0 to its place in view g.
inline int64_t view_offset(const Problem& p, const Side& side, int64_t plane, int g) {
  if (!p.channels_of || !side.channel) return g * side.group;
  const int64_t there = channel_of(p, plane, g), here = plane / p.channel_planes % p.channels;
  return g * side.group + ((there < 0 ? ~there : there) - here) * side.channel;
}

template <class E>
inline Source<E> source(const Problem& p, int64_t plane, int g = 0) {
  const Side& from = p.source(g);
  return {at<E>(p, from, plane) + view_offset(p, from, plane, g), next_plane(p, from), from.row, from.col};
}

// Memory of one thread, in slots that grow to what was asked for.
struct Slots {
  std::unique_ptr<char[]> memory[8];
  int64_t sizes[8] = {};
  bool listed = false;
};
constexpr int64_t kKeptBytes = int64_t(8) << 20;  // of a slot, from one call to the next

struct ThreadSlots {
  std::vector<Slots*> all;
  bool large = false;  // whether one holds more than may be kept
};
inline ThreadSlots& thread_slots() {
  static thread_local ThreadSlots slots;
  return slots;
}

// What a call leaves when it is done.
inline void release_scratch() {
  ThreadSlots& slots = thread_slots();
  if (!slots.large) return;
  slots.large = false;
  for (Slots* own : slots.all)
    for (int slot = 0; slot < 8; ++slot)
      if (own->sizes[slot] > kKeptBytes) own->memory[slot].reset(), own->sizes[slot] = 0;
}

// Scratch of the calling thread, for one unit of work; slots are disjoint, and so are types.
template <class E>
inline E* scratch(int slot, int64_t elements) {
  static thread_local Slots own;
  const int64_t bytes = elements * int64_t(sizeof(E)) + 256;
  if (own.sizes[slot] < bytes) {
    if (!own.listed) thread_slots().all.push_back(&own), own.listed = true;
    own.memory[slot].reset(), own.sizes[slot] = 0;  // first, so that both are never there at once
    own.memory[slot].reset(new char[bytes]);
    own.sizes[slot] = bytes;
    if (bytes > kKeptBytes) thread_slots().large = true;
  }
  return reinterpret_cast<E*>((reinterpret_cast<uintptr_t>(own.memory[slot].get()) + 63) & ~uintptr_t(63));
}

// body(0 … count − 1), each by one thread, on the problem's threads if so much work pays. What a body throws (there may be
// no memory for its scratch) may not leave a parallel region: the first of it is thrown behind.
template <class F>
inline void for_units(const Problem& p, int64_t count, int64_t work, const F& body) {
  const int threads = work < kShares ? 1 : int(std::min<int64_t>(p.threads, count));
  if (threads <= 1) {
    for (int64_t n = 0; n < count; ++n) body(n);
    stream_fence();
    release_scratch();
    return;
  }
  std::exception_ptr failed;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
      try {
        body(n);
      } catch (...) {
#pragma omp critical(equikern_failed)
        if (!failed) failed = std::current_exception();
      }
    }
    stream_fence();
    release_scratch();
  }
  if (failed) std::rethrow_exception(failed);
}
template <class F>
inline void for_units(const Problem& p, const Units& u, int64_t work, const F& body) {
  for_units(p, u.count, work, body);
}

// A view's weight, with the sign of its channel where views have signs.
inline double weight(const Problem& p, int g, int64_t plane) {
  const double sign = negates(p, plane, g) ? -1.0 : 1.0;
  if (!p.weights) return sign;
  const int64_t k = p.view(g) * p.weight_columns + plane / p.planes_per_weight;
  return sign * (p.dtype == Dtype::kFloat64 ? static_cast<const double*>(p.weights)[k] : static_cast<const float*>(p.weights)[k]);
}

inline int64_t elements_of(const Problem& p, const Region& r) { return r.planes * r.rows() * r.pixels() * p.V; }

template <class E>
inline Band<E> dense_band(const Problem& p, const Region& r, const E* data) {
  return {data, r.rows() * r.pixels() * p.V, r.pixels() * p.V};
}

// One tensor's region, whose pixels may lie any way.
template <class E>
struct Place {
  E* data;
  int64_t plane, row, col;

  Place(const Problem& p, const Side& side, int64_t first_plane, int g)
      : Place(side.data ? at<E>(p, side, first_plane) + view_offset(p, side, first_plane, g) : nullptr, next_plane(p, side), side.row, side.col) {}
  Place(E* first, int64_t to_plane, int64_t to_row, int64_t to_col) : data(first), plane(to_plane), row(to_row), col(to_col) {}
  E* at_region(const Region& r) const { return data + r.i0 * row + r.j0 * col; }
  bool rows_fit(const Problem& p) const { return col == p.V; }
};

// Whether a band of the region is one run, seen from both sides.
inline bool is_flat(const Problem& p, const Region& r, int64_t plane_a, int64_t row_a, int64_t plane_b, int64_t row_b) {
  const int64_t length = r.pixels() * p.V, all = r.rows() * length;
  return (r.rows() == 1 || (row_a == length && row_b == length)) && (r.planes == 1 || (plane_a == all && plane_b == all));
}

// body(offset on side a, offset on side b, elements) for the longest runs that both sides have.
template <class F>
inline void for_runs(const Problem& p, const Region& r, int64_t plane_a, int64_t row_a, int64_t plane_b, int64_t row_b, const F& body) {
  const int64_t length = r.pixels() * p.V;
  if (is_flat(p, r, plane_a, row_a, plane_b, row_b)) return body(int64_t(0), int64_t(0), r.planes * r.rows() * length);
  if (row_a == length && row_b == length) {
    for (int64_t k = 0; k < r.planes; ++k) body(k * plane_a, k * plane_b, r.rows() * length);
    return;
  }
  for (int64_t k = 0; k < r.planes; ++k)
    for (int64_t i = 0; i < r.rows(); ++i) body(k * plane_a + i * row_a, k * plane_b + i * row_b, length);
}

// Write a band to its place in a result.
template <class E>
inline void put(const Problem& p, const Place<E>& place, const Band<E>& band, const Region& r, bool streaming) {
  E* to = place.at_region(r);
  if (place.rows_fit(p)) {
    return for_runs(p, r, place.plane, place.row, band.plane, band.row, [&](int64_t a, int64_t b, int64_t n) {
      char* dst = reinterpret_cast<char*>(to + a);
      const char* src = reinterpret_cast<const char*>(band.data + b);
      streaming ? stream(dst, src, n * sizeof(E)) : copy_bytes(dst, src, n * sizeof(E));
    });
  }
  for (int64_t k = 0; k < r.planes; ++k)
    for (int64_t i = 0; i < r.rows(); ++i)
      for (int64_t j = 0; j < r.pixels(); ++j)
        for (int64_t v = 0; v < p.V; ++v)
          to[k * place.plane + i * place.row + j * place.col + v] = band.data[k * band.plane + i * band.row + j * p.V + v];
}

// Dense numbers in place of a band whose pixels lie apart.
template <class E>
inline Band<E> gathered(const Problem& p, const Place<E>& place, const Region& r, E* stage) {
  const E* from = place.at_region(r);
  if (place.rows_fit(p)) return {from, place.plane, place.row};
  E* to = stage;
  for (int64_t k = 0; k < r.planes; ++k)
    for (int64_t i = 0; i < r.rows(); ++i)
      for (int64_t j = 0; j < r.pixels(); ++j)
        for (int64_t v = 0; v < p.V; ++v) *to++ = from[k * place.plane + i * place.row + j * place.col + v];
  return dense_band<E>(p, r, stage);
}

// The region in bands that fit into L1 with `bytes` for each element, of rows or of parts of one row; never a rest too
// low for a tile. Units of several planes do fit.
template <class F>
inline void for_bands(const Problem& p, const Region& whole, int64_t bytes, const F& body) {
  if (whole.planes > 1) return body(whole);
  if (whole.rows() == 1) {
    const int64_t n = std::max<int64_t>(16, (p.V == 1 ? kBand / bytes : kBand / (p.V * bytes)) / 512 * 512);
    for (int64_t j = whole.j0; j < whole.j1;) {
      int64_t end = j + n;
      if (whole.j1 - end < n / 4) end = whole.j1;
      body(Region{whole.planes, whole.i0, whole.i1, j, end});
      j = end;
    }
    return;
  }
  const int64_t row = std::max<int64_t>(1, whole.pixels() * p.V * bytes);
  if (whole.rows() * row <= kBand) return body(whole);
  const int64_t n = std::max<int64_t>(16, kBand / row / 16 * 16);
  for (int64_t i = whole.i0; i < whole.i1;) {
    int64_t end = i + n;
    if (whole.i1 - end < 16) end = whole.i1;
    body(Region{whole.planes, i, end, whole.j0, whole.j1});
    i = end;
  }
}

// Where a view shows the source block of a unit.
inline Region region_of(const Problem& p, unsigned code, const Unit& t) {
  const int64_t a0 = code & kReverseH ? p.H - t.r1 : t.r0, a1 = a0 + t.r1 - t.r0;
  const int64_t b0 = code & kReverseW ? p.W - t.c1 : t.c0, b1 = b0 + t.c1 - t.c0;
  return code & kTranspose ? Region{t.planes, b0, b1, a0, a1} : Region{t.planes, a0, a1, b0, b1};
}

// Whether a view's score takes the place of the best so far, on which later ones must improve. NaN never wins: it is
// replaced by anything that is not NaN, and replaces nothing.
template <class S>
inline bool is_better(S score, S best, bool minimum) {
  return (minimum ? score < best : score > best) || (std::isnan(best) && !std::isnan(score));
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

template <class T>
inline const T* numbers(const Bits<T>* bits) { return reinterpret_cast<const T*>(bits); }
template <class T>
inline T* numbers(Bits<T>* bits) { return reinterpret_cast<T*>(bits); }

}  // namespace EQK_ISA
}  // namespace equikern
