// What one thread of symmetrize does between barriers, where the views are a group: the mean is then the same at all
// places that the group joins, so each is computed once, in place of the staged values, and written back.
#pragma once

#include "staging.h"

namespace equikern {
namespace cuda {

// Groups of views of a plane have as many elements as divide D4's.
template <class F>
void with_order(const Plan& plan, F&& call) {
  switch (plan.n_views) {
    case 2: return call(std::integral_constant<int, 2>());
    case 4: return call(std::integral_constant<int, 4>());
    default: return call(std::integral_constant<int, 8>());
  }
}

template <class T, int kOrder>
struct SymmetrizeRuns {
  using A = Accumulator<T>;
  struct State {};
  static constexpr int kPhases = 3, kSize = sizeof(T);

  template <int kPhase>
  static EQK_HD void phase(const Plan& p, int64_t block, int thread, unsigned char* shared, State&) {
    const Planes planes = planes_of(p, block);
    const int64_t offset = planes.first * p.H * p.W;
    const T* x = reinterpret_cast<const T*>(p.x.data) + offset;
    if constexpr (kPhase == 0) {
      stage_runs<T, true>(p, x, 1, planes.elements, thread, shared);
    } else if constexpr (kPhase == 1) {  // a thread finds its places once, and goes with them from plane to plane
      unsigned char* run = shared + staged_run(p, x, 0);
      const int box = p.box_H * p.box_W, step = p.box_planes * p.plane_bytes;
      for (int n = thread; n < box * p.box_planes; n += kThreads) {
        const int number = static_cast<int>(divide(n, p.by_box)), rest = n - number * box;
        int i = static_cast<int>(divide(rest, p.by_box_W)), j = rest - i * p.box_W;
        int place[kOrder];
        if (!stands(p, i, j) || !join(p, i, j, place)) continue;
        unsigned char* plane = run + number * p.plane_bytes;
        for (int left = planes.count - number; left > 0; left -= p.box_planes, plane += step) average(p, plane, place);
      }
    } else {
      unstage_run(p, shared + staged_run(p, x, 0), reinterpret_cast<T*>(p.out.data) + offset, misalignment(x),
                  planes.elements, thread);
    }
  }

  // Whether pixel (i, j) of the box stands for a set, and which pixel of the plane that is.
  static EQK_HD bool stands(const Plan& p, int& i, int& j) {
    if constexpr (kOrder == 8) {  // rows i and last - i of the triangle are one row of the box
      const int last = p.box_W - 2;
      const bool folded = j > last - i;
      if (folded && i == last - i) return false;
      j = folded ? j - 1 : j + i;
      i = folded ? last - i : i;
      return true;
    }
    return p.corner != Corner::quarters || 2 * j + 1 < p.W || i == j;
  }

  // The places of a plane that the group joins with (i, j), and whether this is the first of them.
  static EQK_HD bool join(const Plan& p, int i, int j, int (&place)[kOrder]) {
    const int least = p.corner == Corner::asked ? i * p.row_bytes + j * kSize : 0;
    bool first = true;
    for (int g = 0; g < kOrder; ++g) {
      place[g] = p.views[g].origin + i * p.views[g].down + j * p.views[g].right;
      if (kOrder < 8) first = first && least <= place[g];
    }
    return first;
  }

  static EQK_HD void average(const Plan& p, unsigned char* plane, const int (&place)[kOrder]) {
    A sum = 0;
    for (int g = 0; g < kOrder; ++g) sum += widen(*reinterpret_cast<const T*>(plane + place[g]));
    T mean;
    narrow(sum * A(p.scale), mean);
    for (int g = 0; g < kOrder; ++g) *reinterpret_cast<T*>(plane + place[g]) = mean;
  }
};

}  // namespace cuda
}  // namespace equikern
