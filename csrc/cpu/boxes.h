// Volumes D×H×W whose views permute and mirror their three axes. Every view is made of planes whose rows lie along w:
// planes h×w one behind the other along d, or where the view's rows lie along d, planes d×w along h. Such a plane is
// copied, mirrored or transposed as an image is. Volumes are cut into boxes, so that all views of one stay in the cache.
#pragma once

#include "dot.h"
#include "orbit.h"
#include "reduce.h"

namespace equikern {
namespace EQK_ISA {

constexpr unsigned kAxis = 3;

// A part of a volume, or of a view of it.
struct Box {
  int64_t lo[3], hi[3];

  int64_t size(int axis) const { return hi[axis] - lo[axis]; }
};

// One view. The code: two bits each for the input axis (0 d, 1 h, 2 w) that the view's axes 0 and 1 show, then one bit
// each for d, h and w read backwards.
struct Turn {
  int order[3];        // the input axis that each axis of the view shows
  bool back[3];        // by input axis
  int third, rows;     // the input axis along which planes lie, and that of their rows
  unsigned code;       // what the view does to every plane, see grid_index.h
  int along, down;     // the view's axes along its planes, and along the rows of each

  explicit Turn(unsigned c) : order{int(c & kAxis), int(c >> 2 & kAxis), int(3 - (c & kAxis) - (c >> 2 & kAxis))} {
    for (int a = 0; a < 3; ++a) back[a] = c >> (4 + a) & 1;
    third = order[2] == 2 ? order[0] : order[2] == 0 ? 1 : 0, rows = 1 - third;  // planes of the view are whole where they can be
    code = (order[2] != 2 ? kTranspose : 0) | (back[rows] ? kReverseH : 0) | (back[2] ? kReverseW : 0);
    along = place_of(third), down = place_of(order[2] == 2 ? rows : 2);
  }
  int place_of(int axis) const { return order[0] == axis ? 0 : order[1] == axis ? 1 : 2; }

  // Where the view shows a box of the input, and the other way round.
  Box shown(const Box& in, const int64_t* size) const {
    Box box;
    for (int k = 0; k < 3; ++k) {
      const int a = order[k];
      box.lo[k] = back[a] ? size[a] - in.hi[a] : in.lo[a];
      box.hi[k] = box.lo[k] + in.size(a);
    }
    return box;
  }
  Box source(const Box& out, const int64_t* size) const {
    Box box;
    for (int k = 0; k < 3; ++k) {
      const int a = order[k];
      box.lo[a] = back[a] ? size[a] - out.hi[k] : out.lo[k];
      box.hi[a] = box.lo[a] + out.size(k);
    }
    return box;
  }
};

// The views of a call; and the call on their planes, whose sizes depend on the axis that these lie along.
struct Turns {
  int64_t size[3], out_size[3];
  std::vector<Turn> all;
  Problem planes[2];
  bool moves = false;  // whether a view shows w elsewhere than on its last axis, or exchanges d and h

  explicit Turns(const Problem& p) : size{p.D, p.H, p.W}, out_size{p.Do, p.Ho, p.Wo}, planes{p, p} {
    for (int g = 0; g < p.views; ++g) {
      all.emplace_back(p.code(g));
      moves |= all.back().order[0] != 0 || all.back().order[1] != 1;
    }
    planes[1].H = p.D;
  }
  int64_t elements(const Problem& p) const { return p.planes() * p.D * p.H * p.W * p.V; }
};

// The boxes of all volumes: whole volumes where they are small, slabs with whole rows where no axis moves; smaller ones
// where scratch memory takes `kept` numbers for each element.
struct Boxes {
  int64_t side[3], parts[3], size[3], count;

  Boxes(const Problem& p, const Turns& turns, const int64_t* of, int64_t edge, int64_t kept = 1) {
    const int64_t pixel = p.V * kept;
    int64_t elements = pixel;
    for (int k = 0; k < 3; ++k) size[k] = of[k], elements *= of[k];
    while (edge > 8 && edge * edge * pixel > kFace) edge /= 2;
    for (int k = 0; k < 3; ++k) side[k] = elements <= kPlane ? std::max<int64_t>(1, size[k]) : edge;
    if (elements > kPlane && !turns.moves) {
      side[2] = std::min(size[2], kPart);
      side[1] = std::min(size[1], std::max<int64_t>(1, kPart / (side[2] * pixel)));
      side[0] = std::max<int64_t>(1, kPart / (side[1] * side[2] * pixel));
    }
    count = elements == 0 ? 0 : p.planes();
    const int64_t line = std::max<int64_t>(1, kLine / (element_size(p.dtype) * p.V));
    for (int k = 0; k < 3; ++k) {  // parts of nearly the same size, of whole cache lines
      parts[k] = std::max<int64_t>(1, (size[k] + side[k] / 2) / side[k]);
      side[k] = (size[k] + parts[k] - 1) / parts[k];
      if (parts[k] > 1 && side[k] > line) side[k] = (side[k] + line - 1) / line * line;
      if (size[k]) parts[k] = (size[k] + side[k] - 1) / side[k];
      count *= parts[k];
    }
  }
  int64_t volume(int64_t n) const { return n / (parts[0] * parts[1] * parts[2]); }
  Box at(int64_t n) const {
    Box box;
    for (int k = 2; k >= 0; --k) {
      const int64_t i = n % parts[k];
      n /= parts[k];
      box.lo[k] = i * side[k], box.hi[k] = i + 1 == parts[k] ? size[k] : box.lo[k] + side[k];
    }
    return box;
  }
  // As large a share of a volume of these sizes, in whole planes.
  Box slab(int64_t n, const int64_t* of) const {
    const int64_t all = parts[0] * parts[1] * parts[2], i = n % all;
    return Box{{i * of[0] / all, 0, 0}, {(i + 1) * of[0] / all, of[1], of[2]}};
  }
  int64_t least(int axis) const { return parts[axis] == 1 ? size[axis] : std::min(side[axis], size[axis] - (parts[axis] - 1) * side[axis]); }
};

// The volume of a tensor for one view: its first element and its steps.
template <class E>
struct Volume {
  E* data;
  int64_t step[3];

  Volume(const Problem& p, const Side& side, int64_t n, int g)
      : data(side.data ? at<E>(p, side, n) + view_offset(p, side, n, g) : nullptr), step{side.slab, side.row, side.col} {}
  E* at_box(const Box& box) const { return data ? data + box.lo[0] * step[0] + box.lo[1] * step[1] + box.lo[2] * step[2] : nullptr; }
};

// Fetches rows of n elements into L2 ahead of their use, to be read or to be written (kWrites): they are short and far
// apart, which the hardware does not foresee.
template <int kWrites = 0, class E>
inline void fetch_rows(const E* first, int64_t row, int64_t rows, int64_t n) {
  for (int64_t i = 0; i < rows; ++i, first += row)
    for (int64_t j = 0; j < n; j += kLine / int64_t(sizeof(E))) __builtin_prefetch(first + j, kWrites, 2);
}
constexpr int64_t kPlanesAhead = 2;

// How a view shows a box: planes of the source, and the same region of every plane of the view.
template <class E>
struct Planes {
  const Problem& p;  // a call on such planes
  Source<E> from;
  View<E> view;
  Region region;
  const Turn& turn;
  int64_t first;     // of the view's planes

  Planes(const Turns& turns, int g, const Volume<E>& volume, const Box& in)
      : p(turns.planes[turns.all[g].third]), view{turns.all[g].code}, turn(turns.all[g]) {
    const int t = turn.third;
    const bool back = turn.back[t];
    first = back ? turns.size[t] - in.hi[t] : in.lo[t];
    const int64_t step = volume.step[t];
    from = Source<E>{volume.data + (back ? in.hi[t] - 1 : in.lo[t]) * step, back ? -step : step, volume.step[turn.rows], volume.step[2]};
    const Unit block{0, in.size(t), in.lo[turn.rows], in.hi[turn.rows], in.lo[2], in.hi[2]};
    region = region_of(p, turn.code, block);
  }
  // The view's planes in a tensor.
  Place<E> place(const Volume<E>& to) const {
    return Place<E>(to.data ? to.data + first * to.step[turn.along] : nullptr, to.step[turn.along], to.step[turn.down], to.step[2]);
  }
  // Fetches plane k of the source, if there is one.
  void fetch(int64_t k) const {
    if (k >= region.planes || p.V != 1 || from.col != 1) return;
    const bool turned = turn.code & kTranspose, up = turn.code & kReverseH, left = turn.code & kReverseW;
    const int64_t rows = turned ? region.pixels() : region.rows(), a = turned ? region.j0 : region.i0;
    const int64_t n = turned ? region.rows() : region.pixels(), b = turned ? region.i0 : region.j0;
    fetch_rows(from.data + k * from.plane + (up ? p.H - a - rows : a) * from.row + (left ? p.W - b - n : b), from.row, rows, n);
  }
  // body(plane number, its region) for bands of single planes that fit into L1, or for all planes at once where these do.
  template <class F>
  void for_each(int64_t bytes, const F& body) const {
    if (elements_of(p, region) * bytes <= kBand) return body(0, region);
    for (int64_t k = 0; k < region.planes; ++k)
      for_bands(p, Region{1, region.i0, region.i1, region.j0, region.j1}, bytes, [&](const Region& r) { body(k, r); });
  }
};

// A box of a result that is dense in scratch memory.
template <class E>
inline void put_box(const Problem& p, const Side& side, int64_t n, const Box& box, const E* dense, bool streaming) {
  const Volume<E> to(p, side, n, 0);
  const Region r{box.size(0), 0, box.size(1), 0, box.size(2)};
  put<E>(p, Place<E>(to.at_box(box), to.step[0], to.step[1], to.step[2]), dense_band<E>(p, r, dense), r, streaming);
}

// A view of a box in the order of the result, dense.
template <class E>
inline void stage_planes(const Planes<E>& planes, const Box& out, E* stage, bool minus) {
  const Problem& p = planes.p;
  const int64_t step[3] = {out.size(1) * out.size(2) * p.V, out.size(2) * p.V, p.V};
  Source<E> from = planes.from;
  const Region r{1, planes.region.i0, planes.region.i1, planes.region.j0, planes.region.j1};
  for (int64_t k = 0; k < planes.region.planes; ++k, from.data += from.plane) {
    planes.fetch(k + kPlanesAhead);
    copy_views<E>(stage + k * step[planes.turn.along], 0, step[planes.turn.down], from, p, planes.view, r);
  }
  if (minus) negate<E>(p, stage, step[planes.turn.along], step[planes.turn.down], planes.region);
}

// A view of a box to its place, plane by plane; `fetches` where the box is not in the cache yet.
template <class T, bool kExact>
inline void put_planes(const Planes<Bits<T>>& planes, const Place<Bits<T>>& place, bool streaming, bool fetches, int g, int64_t n,
                       int64_t chosen) {
  typedef Bits<T> E;
  if (fetches) planes.fetch(0);
  const bool claims = fetches && !streaming && place.col == planes.p.V;
  Source<E> from = planes.from;
  Place<E> to = place;
  planes.for_each(sizeof(E), [&](int64_t k, const Region& r) {
    if (fetches) planes.fetch(k + kPlanesAhead);
    if (claims && k + kPlanesAhead < planes.region.planes)
      fetch_rows<1>(place.at_region(r) + (k + kPlanesAhead) * place.plane, place.row, r.rows(), r.pixels() * planes.p.V);
    from.data = planes.from.data + k * planes.from.plane;
    to.data = place.data + k * place.plane;
    const bool scatters = kExact && planes.turn.code & kTranspose && !streaming && planes.p.V == 1 && place.rows_fit(planes.p);
    if (scatters && !(planes.p.index && chosen != g) && !negates(planes.p, n, g)) {
      // Rows that are a power of two apart share cache sets: they are put together in L1 and written whole.
      const Band<E> band = dense_band<E>(planes.p, r, scratch<E>(0, elements_of(planes.p, r)));
      copy_views<E>(const_cast<E*>(band.data), band.plane, band.row, from, planes.p, planes.view, r);
      return put<E>(planes.p, to, band, r, false);
    }
    put_view<T, kExact>(planes.p, to, from, planes.view, r, streaming, g, n, chosen);
  });
}

}  // namespace EQK_ISA
}  // namespace equikern
