// Views of volumes D×H×W, which permute and mirror their three axes. Every view is made of planes whose rows lie along w:
// planes h×w one behind the other along d, or where the view's rows lie along d, planes d×w along h. Such a plane is
// copied, mirrored or transposed as an image is. Volumes are cut into boxes, so that all views of one stay in the cache.
#pragma once

#include "dot.h"
#include "orbit.h"
#include "reduce.h"

namespace equikern {
namespace EQK_ISA {

// The side of a box: its rows are whole cache lines, two of them where no sums of float32 have to fit into L2 beside it.
constexpr int64_t kSumSide = 32;
template <class E>
constexpr int64_t kSide = sizeof(E) < 4 ? 64 : 32;
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
    third = order[2] == 0 ? 1 : 0, rows = 1 - third;
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
      all.emplace_back(p.codes[g]);
      moves |= all.back().order[0] != 0 || all.back().order[1] != 1;
    }
    planes[1].H = p.D;
  }
  int64_t elements(const Problem& p) const { return p.planes() * p.D * p.H * p.W * p.V; }
};

// The boxes of all volumes: whole volumes where they are small, slabs with whole rows where no axis moves.
struct Boxes {
  int64_t side[3], parts[3], size[3], count;

  Boxes(const Problem& p, const Turns& turns, const int64_t* of, int64_t edge) {
    int64_t elements = p.V;
    for (int k = 0; k < 3; ++k) size[k] = of[k], elements *= of[k];
    while (edge > 8 && edge * edge * p.V > 4096) edge /= 2;
    for (int k = 0; k < 3; ++k) side[k] = elements <= kPlane ? std::max<int64_t>(1, size[k]) : edge;
    if (elements > kPlane && !turns.moves) {
      side[2] = std::min<int64_t>(size[2], 32768);
      side[1] = std::min<int64_t>(size[1], std::max<int64_t>(1, 32768 / (side[2] * p.V)));
      side[0] = std::max<int64_t>(1, 32768 / (side[1] * side[2] * p.V));
    }
    count = elements == 0 ? 0 : p.planes();
    for (int k = 0; k < 3; ++k) {  // a last part of less than three quarters is joined to the one before
      parts[k] = std::max<int64_t>(1, (size[k] + side[k] / 4) / side[k]);
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
  int64_t least(int axis) const { return parts[axis] == 1 ? size[axis] : std::min(side[axis], size[axis] - (parts[axis] - 1) * side[axis]); }
};

// The volume of a tensor for one view: its first element and its steps.
template <class E>
struct Volume {
  E* data;
  int64_t step[3];

  Volume(const Problem& p, const Side& side, int64_t n, int64_t g)
      : data(side.data ? at<E>(p, side, n) + view_offset(p, side, n, g) : nullptr), step{side.slab, side.row, side.col} {}
  E* at_box(const Box& box) const { return data ? data + box.lo[0] * step[0] + box.lo[1] * step[1] + box.lo[2] * step[2] : nullptr; }
};

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
      : p(turns.planes[turns.all[g].third]), view{turns.all[g].code, nullptr, nullptr}, turn(turns.all[g]) {
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
  // body(plane number, its region) for bands of single planes that fit into L1, or for all planes at once where these do.
  template <class F>
  void for_each(int64_t bytes, const F& body) const {
    if (elements_of(p, region) * bytes <= kBand) return body(0, region);
    for (int64_t k = 0; k < region.planes; ++k)
      for_bands(p, Region{1, region.i0, region.i1, region.j0, region.j1}, bytes, [&](const Region& r) { body(k, r); });
  }
};

// A view of a box to its place, plane by plane.
template <class T, bool kExact>
inline void put_planes(const Planes<Bits<T>>& planes, const Place<Bits<T>>& place, bool streaming, int g, int64_t n, int64_t chosen) {
  typedef Bits<T> E;
  Source<E> from = planes.from;
  Place<E> to = place;
  planes.for_each(sizeof(E), [&](int64_t k, const Region& r) {
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

template <class T, bool kExact>
void volume_orbit(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSide<E>);
  const int64_t work = p.views * turns.elements(p);
  const bool streaming = past_caches((work + work / p.views) * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box in = boxes.at(unit);
    const Volume<E> x(p, p.in, n, 0);
    const int64_t chosen = p.index ? p.index[n / p.planes_per_index] : -1;
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, x, in);
      put_planes<T, kExact>(planes, planes.place(Volume<E>(p, p.out, n, g)), streaming, g, n, chosen);
    }
  });
}

template <class E>
void volume_select(const Problem& call) {
  Problem p = call;
  const int64_t* const index = p.index;
  p.index = nullptr;  // it chooses views to read, not to write
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.out_size, kSide<E>);
  const int64_t work = turns.elements(p);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(E)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const int g = int(std::min<int64_t>(std::max<int64_t>(index[n / p.planes_per_index], 0), p.views - 1));
    const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turns.all[g].source(boxes.at(unit), turns.size));
    put_planes<E, true>(planes, planes.place(Volume<E>(p, p.out, n, 0)), streaming, g, n, -1);
  });
}

template <class T>
void volume_dot(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSide<E>);
  const int64_t work = p.views * turns.elements(p);
  const bool streaming = p.out.data && past_caches((2 * work + work / p.views) * int64_t(sizeof(T)));
  std::vector<double> parts(boxes.count * p.views);
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box in = boxes.at(unit);
    const Volume<E> x(p, p.in, n, 0);
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, x, in);
      const Place<E> other = planes.place(Volume<E>(p, p.other, n, g)), out = planes.place(Volume<E>(p, p.out, n, g));
      const Acc<T> w = Acc<T>(weight(p, g, n));
      Dot<T> dot;
      planes.for_each(2 * sizeof(E), [&](int64_t k, const Region& r) {
        Source<E> from = planes.from;
        Place<E> y = other, to = out;
        from.data += k * from.plane, y.data += k * y.plane;
        if (to.data) to.data += k * to.plane;
        dot_band<T>(planes.p, dot, to, y, from, planes.view, r, w, streaming);
      });
      parts[unit * p.views + g] = negates(p, n, g) ? -dot.total() : dot.total();
    }
  });
  add_dots<T>(p, parts, boxes.count, [&](int64_t unit) { return boxes.volume(unit); });
}

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
  copy_views<E>(stage, step[planes.turn.along], step[planes.turn.down], planes.from, p, planes.view, planes.region);
  if (minus) negate<E>(p, stage, step[planes.turn.along], step[planes.turn.down], planes.region);
}

template <class T, int kOp>
void volume_fold(const Problem& p, const Turns& turns, const Boxes& boxes, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const bool pair = p.op == kMeanStd;
  for_units(p, boxes.count, p.views * turns.elements(p), [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box out = boxes.at(unit);
    const int64_t elements = out.size(0) * out.size(1) * out.size(2) * p.V;
    E* stage = scratch<E>(0, 2 * elements);
    A* s = scratch<A>(1, elements);
    A* m = kOp == kStd ? scratch<A>(2, elements) : nullptr;
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turns.all[g].source(out, turns.size));
      stage_planes<E>(planes, out, stage, kOp != kSum && negates(p, n, g));
      join_run<T, kOp>(s, m, numbers<T>(stage), elements, g, A(weight(p, g, n)));
    }
    E* second = pair ? stage + elements : nullptr;
    finish_run<T>(p, numbers<T>(stage), numbers<T>(second), s, m, elements);
    put_box<E>(p, p.out, n, out, stage, streaming);
    if (pair) put_box<E>(p, p.other, n, out, second, streaming);
  });
}

// The views that show the same axes on theirs, whose rows are summed before they are turned.
struct TurnClass {
  const Turn* turn = nullptr;
  std::vector<int> views;
};

// to (+)= the plane of sums, whose rows are those of the source: `lines` rows of n.
template <class A, bool kAdd>
inline void join_plane(A* to, int64_t to_row, const A* from, int64_t from_row, int64_t rows, int64_t n) {
  for (int64_t i = 0; i < rows; ++i, to += to_row, from += from_row)
    for (int64_t j = 0; j < n; ++j) to[j] = kAdd ? to[j] + from[j] : from[j];
}

template <class C, bool kWeighted, class T, class Put>
inline void sum_rows(const Lines<T>& f, const Lines<T>& b, int64_t lines, int64_t n, const Put& put) {
  if (f.count == 4 && b.count == 4) return sum_counted<C, 4, 4, kWeighted>(f, b, 0, lines, n, 0, put);
  sum_lines<C, kWeighted>(f, b, 0, lines, n, 0, put);
}

// The weighted sum of all views of one box of the result, in `sums`, dense. Fold first and turn once, as in sum.h: the
// rows of the views of a class are summed, forwards and backwards, plane by plane, and these sums are turned.
template <class T, class C, bool kWeighted>
void sum_box(const Problem& p, const Turns& turns, const std::vector<TurnClass>& classes, int64_t n, const Box& out, Acc<T>* sums) {
  typedef Acc<T> A;
  const int64_t step[3] = {out.size(1) * out.size(2), out.size(2), 1};
  bool begun = false;
  for (const TurnClass& some : classes) {
    const Turn& turn = *some.turn;
    const bool turned = turn.code & kTranspose;
    const int64_t planes = out.size(turn.along), row = out.size(turn.place_of(2)), lines = out.size(turn.place_of(turn.rows));
    A* const plane = scratch<A>(2, lines * row);
    A* const across = turned ? scratch<A>(3, lines * row) : nullptr;
    for (int64_t k = 0; k < planes; ++k) {
      Lines<T> forward, backward;
      for (const int g : some.views) {
        const Turn& view = turns.all[g];
        const Volume<T> y(p, p.in, n, g);
        const Box in = view.source(out, turns.size);
        const bool back = view.back[view.third], up = view.back[view.rows];
        const int64_t first = back ? in.hi[view.third] - 1 - k : in.lo[view.third] + k, line = up ? in.hi[view.rows] - 1 : in.lo[view.rows];
        const T* const at = y.data + first * y.step[view.third] + line * y.step[view.rows] + in.lo[2];
        const int64_t next = back ? -y.step[view.third] : y.step[view.third];
        (view.back[2] ? backward : forward).add(at, up ? -y.step[view.rows] : y.step[view.rows], A(weight(p, g, n)), next);
      }
      A* const to = sums + k * step[turn.along];
      A* const kept = !turned && !begun ? to : plane;
      const int64_t kept_row = !turned && !begun ? step[turn.down] : row;
      sum_rows<C, kWeighted>(forward, backward, lines, row,
                             [=](int64_t line, int64_t, int64_t j, const C& sum) { keep_in_order<C>(kept + line * kept_row + j, sum); });
      if (turned) {
        transpose<Bits<A>>(reinterpret_cast<Bits<A>*>(across), lines, reinterpret_cast<const Bits<A>*>(plane), row, row, lines);
        begun ? join_plane<A, true>(to, step[turn.down], across, lines, row, lines)
              : join_plane<A, false>(to, step[turn.down], across, lines, row, lines);
      } else if (begun) {
        join_plane<A, true>(to, step[turn.down], plane, row, lines, row);
      }
    }
    begun = true;
  }
}

template <class T, class C>
void volume_sum_chunks(const Problem& p, const Turns& turns, const Boxes& boxes, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  std::vector<TurnClass> classes(16);
  for (int g = 0; g < p.views; ++g) {
    TurnClass& own = classes[p.codes[g] & 15];
    own.turn = &turns.all[g];
    own.views.push_back(g);
  }
  classes.erase(std::remove_if(classes.begin(), classes.end(), [](const TurnClass& c) { return !c.turn; }), classes.end());
  for_units(p, boxes.count, p.views * turns.elements(p), [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box out = boxes.at(unit);
    const int64_t elements = out.size(0) * out.size(1) * out.size(2);
    A* const sums = scratch<A>(1, elements + C::kLanes);
    if (p.weights || p.signs)
      sum_box<T, C, true>(p, turns, classes, n, out, sums);
    else
      sum_box<T, C, false>(p, turns, classes, n, out, sums);
    T* const to = numbers<T>(scratch<E>(0, elements));
    const A scale = A(p.scale);
    int64_t k = 0;
    for (; k + C::kLanes <= elements; k += C::kLanes) times(fetch_in_order<C>(sums + k), scale).to(to + k);
    for (; k < elements; ++k) down(to + k, sums[k] * scale);
    put_box<E>(p, p.out, n, out, reinterpret_cast<const E*>(to), streaming);
  });
}

// Whether the sum is done here: contiguous rows, in every box at least as long as the shortest chunk.
template <class T>
bool volume_sum(const Problem& p, const Turns& turns, const Boxes& boxes, bool streaming) {
  if (p.V != 1 || p.in.col != 1 || p.views > kMostSummed) return false;
  int64_t n = INT64_MAX;
  for (const Turn& turn : turns.all) n = std::min(n, boxes.least(turn.place_of(2)));
  constexpr int L = kLanesOf<T>;
  if (n >= Chunk<T, L>::kLanes) return volume_sum_chunks<T, Chunk<T, L>>(p, turns, boxes, streaming), true;
  if constexpr (L >= 8)
    if (n >= Chunk<T, L / 4>::kLanes) return volume_sum_chunks<T, Chunk<T, L / 4>>(p, turns, boxes, streaming), true;
  return false;
}

template <class T>
void volume_reduce(const Problem& p) {
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.out_size, kSumSide);
  const bool streaming = past_caches((p.views + 1) * turns.elements(p) * int64_t(sizeof(T)));
  switch (p.op) {
    case kSum:
      if (!volume_sum<T>(p, turns, boxes, streaming)) volume_fold<T, kSum>(p, turns, boxes, streaming);
      return;
    case kMax: return volume_fold<T, kMax>(p, turns, boxes, streaming);
    case kMin: return volume_fold<T, kMin>(p, turns, boxes, streaming);
    case kGmean: return volume_fold<T, kGmean>(p, turns, boxes, streaming);
    case kHmean: return volume_fold<T, kHmean>(p, turns, boxes, streaming);
    case kTsharpen: return volume_fold<T, kTsharpen>(p, turns, boxes, streaming);
    case kLogodd: return volume_fold<T, kLogodd>(p, turns, boxes, streaming);
    default: return volume_fold<T, kStd>(p, turns, boxes, streaming);
  }
}

void orbit_of_volumes(const Problem& p) {
  if (p.exact) {
    switch (element_size(p.dtype)) {
      case 1: return volume_orbit<uint8_t, true>(p);
      case 2: return volume_orbit<uint16_t, true>(p);
      case 4: return volume_orbit<uint32_t, true>(p);
      default: return volume_orbit<uint64_t, true>(p);
    }
  }
  switch (p.dtype) {
    case Dtype::kFloat32: return volume_orbit<float, false>(p);
    case Dtype::kFloat64: return volume_orbit<double, false>(p);
    case Dtype::kFloat16: return volume_orbit<Half, false>(p);
    default: return volume_orbit<BFloat16, false>(p);
  }
}

void reduce_of_volumes(const Problem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return volume_reduce<float>(p);
    case Dtype::kFloat64: return volume_reduce<double>(p);
    case Dtype::kFloat16: return volume_reduce<Half>(p);
    default: return volume_reduce<BFloat16>(p);
  }
}

void dot_of_volumes(const Problem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return volume_dot<float>(p);
    case Dtype::kFloat64: return volume_dot<double>(p);
    case Dtype::kFloat16: return volume_dot<Half>(p);
    default: return volume_dot<BFloat16>(p);
  }
}

void select_of_volumes(const Problem& p) {
  switch (element_size(p.dtype)) {
    case 1: return volume_select<uint8_t>(p);
    case 2: return volume_select<uint16_t>(p);
    case 4: return volume_select<uint32_t>(p);
    default: return volume_select<uint64_t>(p);
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
