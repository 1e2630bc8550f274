// The kernels of volumes, see boxes.h.
#include "boxes.h"
#include "kernels.h"
#include "mixes.h"

namespace equikern {
namespace EQK_ISA {

// Zeros in a box, from one row of them or, where rows follow each other and are short, from one plane.
template <class E>
inline void put_zeros(const Problem& p, const Volume<E>& to, const Box& box, bool streaming) {
  const bool flat = to.step[2] == p.V && to.step[1] == box.size(2) * p.V && box.size(1) * to.step[1] <= kPlane;
  const Region r{box.size(0), 0, flat ? 1 : box.size(1), 0, (flat ? box.size(1) : 1) * box.size(2)};
  E* const zeros = scratch<E>(0, r.pixels() * p.V);
  std::memset(zeros, 0, r.pixels() * p.V * sizeof(E));
  put<E>(p, Place<E>(to.at_box(box), to.step[0], to.step[1], to.step[2]), Band<E>{zeros, 0, 0}, r, streaming);
}

// A box of a volume times a number, dense, as the volume that it is a part of: what all views have in common is done once.
template <class T>
inline Volume<Bits<T>> scaled_volume(const Problem& p, Volume<Bits<T>> x, const Box& box, Acc<T> s) {
  typedef Bits<T> E;
  const int64_t row = box.size(2) * p.V, plane = box.size(1) * row;
  E* const dense = scratch<E>(2, box.size(0) * plane);
  const E* const from = x.at_box(box);
  for (int64_t i = 0; i < box.size(0); ++i)
    for (int64_t j = 0; j < box.size(1); ++j)
      scale_run<T>(numbers<T>(dense + i * plane + j * row), numbers<T>(from + i * x.step[0] + j * x.step[1]), row, s);
  x.step[0] = plane, x.step[1] = row, x.step[2] = p.V;
  x.data = dense - (box.lo[0] * plane + box.lo[1] * row + box.lo[2] * p.V);
  return x;
}

template <class T, bool kExact>
void volume_orbit(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSideBytes / int64_t(sizeof(T)));
  const int64_t work = p.views * turns.elements(p);
  const bool streaming = past_caches((work + work / p.views) * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box in = boxes.at(unit);
    Volume<E> x(p, p.in, n, 0);
    const bool alike = !kExact && !p.weights && !p.signs && p.in.col == p.V;
    if constexpr (!kExact) if (alike) x = scaled_volume<T>(p, x, in, Acc<T>(p.scale));
    const int64_t chosen = p.index ? p.index[n / p.planes_per_index] : -1;
    for (int g = 0; g < p.views; ++g) {
      if (p.index && chosen != g) {
        put_zeros<E>(p, Volume<E>(p, p.out, n, g), boxes.slab(unit, turns.out_size), streaming);
        continue;
      }
      const Planes<E> planes(turns, g, x, in);
      const Place<E> place = planes.place(Volume<E>(p, p.out, n, g));
      if (alike)
        put_planes<E, true>(planes, place, streaming, false, g, n, chosen);
      else
        put_planes<T, kExact>(planes, place, streaming, g == 0, g, n, chosen);
    }
  });
}

template <class E>
void volume_select(const Problem& call) {
  Problem p = call;
  p.index = nullptr;  // it chooses views to read, not to write
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.out_size, kSideBytes / int64_t(sizeof(E)));
  const int64_t work = turns.elements(p);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(E)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const int g = call.chosen(n / p.planes_per_index);
    const Turn& turn = turns.all[g];
    const Box out = turn.code & kTranspose ? boxes.at(unit) : boxes.slab(unit, turns.out_size);
    if (out.size(0) == 0) return;
    const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turn.source(out, turns.size));
    put_planes<E, true>(planes, planes.place(Volume<E>(p, p.out, n, 0)), streaming, true, g, n, -1);
  });
}

template <class T>
void volume_dot(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSideBytes / int64_t(sizeof(T)));
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
        if (g == 0) planes.fetch(k + kPlanesAhead);
        if (y.col == 1 && k + kPlanesAhead < planes.region.planes)
          fetch_rows(y.at_region(r) + (k + kPlanesAhead) * y.plane, y.row, r.rows(), r.pixels());
        from.data += k * from.plane, y.data += k * y.plane;
        if (to.data) to.data += k * to.plane;
        dot_band<T>(planes.p, dot, to, y, from, planes.view, r, w, streaming);
      });
      parts[unit * p.views + g] = negates(p, n, g) ? -dot.total() : dot.total();
    }
  });
  add_dots<T>(p, parts, boxes.count, [&](int64_t unit) { return boxes.volume(unit); });
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
    A* s = scratch<A>(1, elements * p.kept());
    A* m = kOp == kStd ? scratch<A>(2, elements) : nullptr;
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, Volume<E>(p, p.source(g), n, g), turns.all[g].source(out, turns.size));
      stage_planes<E>(planes, out, stage, kOp != kSum && negates(p, n, g));
      join_run<T, kOp>(s, m, numbers<T>(stage), elements, g, A(weight(p, g, n)));
    }
    E* second = pair ? stage + elements : nullptr;
    finish_run<T>(p, numbers<T>(stage), numbers<T>(second), s, m, elements);
    put_box<E>(p, p.out, n, out, stage, streaming);
    if (pair) put_box<E>(p, p.spread, n, out, second, streaming);
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
        const Volume<T> y(p, p.source(g), n, g);
        const Box in = view.source(out, turns.size);
        const bool back = view.back[view.third], up = view.back[view.rows];
        const int64_t first = back ? in.hi[view.third] - 1 - k : in.lo[view.third] + k, line = up ? in.hi[view.rows] - 1 : in.lo[view.rows];
        const T* const at = y.data + first * y.step[view.third] + line * y.step[view.rows] + in.lo[2];
        const int64_t next = back ? -y.step[view.third] : y.step[view.third];
        (view.back[2] ? backward : forward).add(at, up ? -y.step[view.rows] : y.step[view.rows], A(weight(p, g, n)), kPlanesAhead * next);
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
    TurnClass& own = classes[p.code(g) & 15];
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
  if (p.V != 1 || p.in.col != 1 || p.source(p.views - 1).col != 1 || p.views > kMostSummed) return false;
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
  const Boxes boxes(p, turns, turns.out_size, kSumSide, p.kept());
  const bool streaming = past_caches((std::min(p.views, p.added + 1) + 1) * turns.elements(p) * int64_t(sizeof(T)));
  if constexpr (std::is_integral_v<T>) {
    volume_fold<T, kVote>(p, turns, boxes, streaming);
  } else {
    if (p.op == kSum && volume_sum<T>(p, turns, boxes, streaming)) return;
    with_op(p.op, [&](auto op) { volume_fold<T, op()>(p, turns, boxes, streaming); });
  }
}

void orbit_of_volumes(const Problem& p) {
  if (p.mats) return with_float(p.dtype, [&](auto t) { mix_orbit<decltype(t)>(p); });
  if (p.exact) return with_bits(p.dtype, [&](auto e) { volume_orbit<decltype(e), true>(p); });
  with_float(p.dtype, [&](auto t) { volume_orbit<decltype(t), false>(p); });
}

void reduce_of_volumes(const Problem& p) {
  if (p.mats) return with_float(p.dtype, [&](auto t) { mix_reduce<decltype(t)>(p); });
  with_number(p.dtype, [&](auto t) { volume_reduce<decltype(t)>(p); });
}

void dot_of_volumes(const Problem& p) {
  with_float(p.dtype, [&](auto t) { p.mats ? mix_dot<decltype(t)>(p) : volume_dot<decltype(t)>(p); });
}

void select_of_volumes(const Problem& p) {
  if (p.mats) return with_float(p.dtype, [&](auto t) { mix_select<decltype(t)>(p); });
  with_bits(p.dtype, [&](auto e) { volume_select<decltype(e)>(p); });
}

}  // namespace EQK_ISA
}  // namespace equikern
