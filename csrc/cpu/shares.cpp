// The gradients of reductions, see shares.h.
#include "boxes.h"
#include "kernels.h"
#include "shares.h"

namespace equikern {
namespace EQK_ISA {

template <class T, int kOp>
void volume_shares(const Problem& p) {
  typedef Bits<T> E;
  const Returned back(p);
  const Turns turns(p), undo(back.p);
  const Boxes boxes(p, turns, turns.out_size, kSumSide, p.views);
  const int64_t work = p.views * turns.elements(p);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box out = boxes.at(unit);
    const Region r{out.size(0), 0, out.size(1), 0, out.size(2)};
    const int64_t elements = elements_of(p, r), row = r.pixels() * p.V, plane = r.rows() * row;
    E* const stage = scratch<E>(3, elements * p.views);
    const E** const from = scratch<const E*>(0, p.views);
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turns.all[g].source(out, turns.size));
      stage_planes<E>(planes, out, stage + g * elements, false);
      from[g] = stage + g * elements;
    }
    const auto place = [&](const Side& side) {
      const Volume<E> whole(p, side, n, 0);
      return Place<E>(whole.at_box(out), whole.step[0], whole.step[1], whole.step[2]);
    };
    share_region<T, kOp>(p, stage, from, place(p.other), place(p.spread), r);
    for (int g = 0; g < p.views; ++g) {
      Volume<E> shares(p, p.out, n, g);
      const Volume<E> to = shares;
      shares.step[0] = plane, shares.step[1] = row, shares.step[2] = p.V;
      shares.data = stage + g * elements - (out.lo[0] * plane + out.lo[1] * row + out.lo[2] * p.V);
      const Planes<E> planes(undo, g, shares, out);
      put_planes<E, true>(planes, planes.place(to), streaming, false, g, n, -1);
    }
  });
}

// f(the reduction), a constant, for those whose gradient these kernels make.
template <class F>
void with_shared(int op, const F& f) {
  switch (op) {
    case kMax: return f(std::integral_constant<int, kMax>());
    case kMin: return f(std::integral_constant<int, kMin>());
    case kStd: return f(std::integral_constant<int, kStd>());
    default: return f(std::integral_constant<int, kMeanStd>());
  }
}

void reduce_backward(const Problem& p) {
  with_float(p.dtype, [&](auto t) {
    with_shared(p.op, [&](auto op) { p.volumes ? volume_shares<decltype(t), op()>(p) : plane_shares<decltype(t), op()>(p); });
  });
}

}  // namespace EQK_ISA
}  // namespace equikern
