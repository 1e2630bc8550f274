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
    } else if constexpr (kPhase == 1) {
      const int first = staged_run(p, x, 0), box = p.box_H * p.box_W;
      const int count = planes.count * box;
      for (int n = thread; n < count; n += kThreads) {
        const int number = static_cast<int>(divide(n, p.by_box)), rest = n - number * box;
        int i = static_cast<int>(divide(rest, p.by_box_W)), j = rest - i * p.box_W;
        if (!stands(p, i, j)) continue;
        const int plane = first + number * p.plane_bytes;
        const int own = plane + i * p.row_bytes + j * kSize;
        join(p.views, shared, plane, i, j, p.corner == Corner::asked ? own : 0, A(p.scale));
      }
    } else {
      unstage_run(p, shared + staged_run(p, x, 0), reinterpret_cast<T*>(p.out.data) + offset, misalignment(x),
                  planes.elements, thread);
    }
  }

  // Whether pixel (i, j) of the box stands for a set, and which pixel of the plane that is.
  static EQK_HD bool stands(const Plan& p, int& i, int& j) {
    if constexpr (kOrder == 8) {  // rows i and last - i of the triangle are one row of the box
      const int side = p.box_W - 1, last = side - 1, length = side - i;
      if (j < length) {
        j += i;
        return true;
      }
      if (i == last - i) return false;
      i = last - i, j += i - length;
      return true;
    }
    return p.corner != Corner::quarters || 2 * j + 1 < p.W || i == j;
  }

  // The places that the group joins with (i, j), none of which may be before `least`.
  static EQK_HD void join(const LinearView (&views)[kMaxViews], unsigned char* shared, int plane, int i, int j, int least,
                          A scale) {
    int place[kOrder];
    bool first = true;
    for (int g = 0; g < kOrder; ++g) {
      place[g] = plane + views[g].origin + i * views[g].down + j * views[g].right;
      if (kOrder < 8) first = first && least <= place[g];
    }
    if (!first) return;
    A sum = 0;
    for (int g = 0; g < kOrder; ++g) sum += widen(*reinterpret_cast<const T*>(shared + place[g]));
    T mean;
    narrow(sum * scale, mean);
    for (int g = 0; g < kOrder; ++g) *reinterpret_cast<T*>(shared + place[g]) = mean;
  }
};

}  // namespace cuda
}  // namespace equikern
