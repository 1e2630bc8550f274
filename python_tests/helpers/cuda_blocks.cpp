// The blocks of the CUDA kernels, run on the CPU: every thread up to a barrier, then every thread after it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <typeinfo>
#include <vector>

#include "cuda/dot_block.h"
#include "cuda/plan.cpp"
#include "cuda/row_plan.cpp"
#include "cuda/softmax_backward_block.h"
#include "cuda/sum_block.h"
#include "cuda/symmetrize_block.h"

using namespace equikern;
using namespace equikern::cuda;

namespace {

// Of the last call, a line for each launch: the function's name, the kernel's mangled one, the shared memory a block asks
// for, blocks.
std::string launches;
std::vector<std::string> plans;   // its parameter
std::vector<uint64_t> partials;   // the memory between the launches of dots
bool plan_only = false;
int64_t one_block = -1;           // all of them, or this one alone

template <class Kernel, int kPhase, class P>
void run_phases(const P& plan, int64_t block, unsigned char* shared, std::vector<typename Kernel::State>& states) {
  if constexpr (kPhase < Kernel::kPhases) {
    for (int n = 0; n < kThreads; ++n) {
      const int thread = kPhase % 2 ? kThreads - 1 - n : n;  // no order of the threads may matter
      Kernel::template phase<kPhase>(plan, block, thread, shared, states[thread]);
    }
    run_phases<Kernel, kPhase + 1>(plan, block, shared, states);
  }
}

template <class Kernel, class P>
void run(const P& plan, int64_t blocks, size_t shared_bytes, const char* name = "run_blocks") {
  launches += std::string(name) + " " + typeid(Kernel).name();
  launches += " " + std::to_string(shared_bytes) + " " + std::to_string(blocks) + "\n";
  plans.emplace_back(reinterpret_cast<const char*>(&plan), sizeof(plan));
  if (plan_only) return;
  const size_t room = (shared_bytes + 31) / 16 * 16;
  auto* shared = static_cast<unsigned char*>(std::aligned_alloc(16, room));
  std::vector<typename Kernel::State> states(kThreads);
  for (int64_t block = 0; block < blocks; ++block) {
    if (one_block >= 0 && block != one_block) continue;
    std::memset(shared, 0xFF, room);  // NaN for every float
    std::memset(static_cast<void*>(states.data()), 0, states.size() * sizeof(states[0]));
    run_phases<Kernel, 0>(plan, block, shared, states);
  }
  std::free(shared);
}

template <template <class> class Runs, template <class, bool> class Tiles, class E>
void run_layout(const Plan& p) {
  if (p.layout == Layout::runs) return run<Runs<E>>(p, p.blocks, p.shared_bytes);
  if (p.vectors) return run<Tiles<E, true>>(p, p.blocks, Tiles<E, true>::kSharedBytes);
  run<Tiles<E, false>>(p, p.blocks, Tiles<E, false>::kSharedBytes);
}

template <template <class> class Runs, template <class, bool> class Tiles>
void run_bits(const Plan& p) {
  if (p.element_size == 16) return run_layout<Runs, Tiles, Bytes16>(p);
  with_bits(p.element_size, [&](auto e) { run_layout<Runs, Tiles, decltype(e)>(p); });
}

template <template <class> class Runs, template <class, bool> class Tiles>
void run_floats(const Plan& p, int dtype) {
  with_float(static_cast<Dtype>(dtype), [&](auto t) { run_layout<Runs, Tiles, decltype(t)>(p); });
}

void run_strided(const Plan& p) {
  if (p.element_size == 16) return run<OrbitStrided<Bytes16>>(p, p.blocks, 0);
  with_bits(p.element_size, [&](auto e) { run<OrbitStrided<decltype(e)>>(p, p.blocks, 0); });
}

template <class T>
void run_dots(Plan& p) {
  partials.assign(p.n_views * p.blocks, ~uint64_t{0});
  p.partial = partials.data();
  if (p.layout == Layout::runs)
    run<DotRuns<T>>(p, p.blocks, p.shared_bytes);
  else if (p.vectors)
    run<DotTiles<T, true>>(p, p.blocks, DotTiles<T, true>::shared_bytes(p));
  else
    run<DotTiles<T, false>>(p, p.blocks, DotTiles<T, false>::shared_bytes(p));
  using Sum = SumOfDots<Accumulator<T>>;
  run<Sum>(p, p.n_views * p.weight_columns, Sum::kSharedBytes);
}

void run_call(const Call& call, Plan& p, int dtype, void* dots) {
  p.dots = dots;
  switch (call.op) {
    case Operator::orbit:
      if (p.layout == Layout::strided) return run_strided(p);
      return call.moves_bits ? run_bits<OrbitRuns, OrbitTiles>(p) : run_floats<ScaledOrbitRuns, ScaledOrbitTiles>(p, dtype);
    case Operator::select:
      return run_bits<SelectRuns, SelectTiles>(p);
    case Operator::sum:
      if (p.layout == Layout::runs && p.invariant)
        return with_float(static_cast<Dtype>(dtype), [&](auto t) {
          with_order(p, [&](auto order) {
            run<SymmetrizeRuns<decltype(t), decltype(order)::value>>(p, p.blocks, p.shared_bytes);
          });
        });
      return run_floats<SumRuns, SumTiles>(p, dtype);
    case Operator::dots:
      return with_float(static_cast<Dtype>(dtype), [&](auto t) { run_dots<decltype(t)>(p); });
  }
}

}  // namespace

// What Python fills in with ctypes.
struct Arguments {
  int64_t op, rank, n_views, element_size, dtype;
  const void* x;
  void* out;
  const void* y;
  const int64_t *sizes, *x_strides, *out_strides, *y_strides;
  const uint8_t* codes;
  double scale;
  const void* weights;
  int64_t* index;
  const void* scores;
  void* dots;
  int64_t weight_dims, index_dims, normalized, scores_double, minimum, plan_only, one_block;
};

// Returns 100 · layout + 50 · vectors + element size, 0 if there was nothing to do, -1 if there is no kernel.
extern "C" int run_call(const Arguments* a) {
  const auto op = static_cast<Operator>(a->op);
  const bool x_has_views = op == Operator::select || op == Operator::sum;
  Call call;
  call.op = op, call.x = a->x, call.out = a->out, call.y = a->y;
  call.sizes.assign(a->sizes, a->sizes + a->rank);
  call.x_strides.assign(a->x_strides, a->x_strides + a->rank + x_has_views);
  if (a->out) call.out_strides.assign(a->out_strides, a->out_strides + a->rank + !x_has_views);
  if (a->y) call.y_strides.assign(a->y_strides, a->y_strides + a->rank + 1);
  call.codes.assign(a->codes, a->codes + a->n_views);
  call.element_size = a->element_size, call.scale = a->scale;
  call.weights = a->weights, call.weight_dims = int(a->weight_dims);
  call.index = a->index, call.index_dims = int(a->index_dims);
  call.scores = a->scores, call.scores_double = a->scores_double, call.minimum = a->minimum;
  call.normalized = a->normalized;
  call.moves_bits = a->scale == 1 && !a->weights;
  try {
    Plan plan;
    if (!make_plan(call, plan)) return -1;
    if (plan.blocks == 0) return 0;
    launches.clear();
    plans.clear();
    plan_only = a->plan_only, one_block = a->one_block;
    run_call(call, plan, int(a->dtype), a->dots);
    return 100 * (1 + static_cast<int>(plan.layout)) + 50 * plan.vectors + plan.element_size;
  } catch (const std::exception&) {
    return -1;
  }
}

struct RowArguments {
  int64_t rank, n_views, dtype, log, moved, shared_limit;
  const void *y, *grad;
  void *out, *lse;
  const int64_t *sizes, *y_strides, *out_strides, *grad_strides;
  const int32_t *positions, *sources;
  int64_t plan_only, one_block;
};

// Returns 1, 0 if there was nothing to do, -1 if there is no kernel. With grad it is the gradient.
extern "C" int run_softmax_mean(const RowArguments* a) {
  RowCall call;
  call.y = a->y, call.out = a->out, call.lse = a->lse, call.grad = a->grad;
  call.sizes.assign(a->sizes, a->sizes + a->rank);
  call.y_strides.assign(a->y_strides, a->y_strides + a->rank + 1);
  call.out_strides.assign(a->out_strides, a->out_strides + a->rank + (a->grad != nullptr));
  if (a->grad) call.grad_strides.assign(a->grad_strides, a->grad_strides + a->rank);
  call.positions = a->positions, call.sources = a->sources, call.moved = a->moved, call.n_views = int(a->n_views);
  call.element_size = element_size(static_cast<Dtype>(a->dtype)), call.shared_limit = a->shared_limit;
  try {
    RowPlan plan;
    if (!make_row_plan(call, plan)) return -1;
    if (plan.rows == 0) return 0;
    launches.clear();
    plans.clear();
    plan_only = a->plan_only, one_block = a->one_block;
    with_float(static_cast<Dtype>(a->dtype), [&](auto t) {
      using T = decltype(t);
      const auto of_kind = [&](auto log) {
        constexpr bool kLog = decltype(log)::value;
        if (a->grad) return run<SoftmaxMeanBackward<T, kLog>>(plan, plan.blocks, plan.shared_bytes, "run_rows");
        run<SoftmaxMean<T, kLog>>(plan, plan.blocks, plan.shared_bytes, "run_rows");
      };
      a->log ? of_kind(std::true_type()) : of_kind(std::false_type());
    });
    return 1;
  } catch (const std::exception&) {
    return -1;
  }
}

// The parameter of a launch of the last call, and the memory between launches.
extern "C" size_t last_plan(size_t number, const void** plan) {
  *plan = plans.at(number).data();
  return plans.at(number).size();
}
extern "C" size_t last_partials(const void** data) {
  *data = partials.data();
  return partials.size() * sizeof(partials[0]);
}

// Copies what the last call launched, or with plan_only would have.
extern "C" void last_launches(char* text, size_t size) {
  const size_t length = std::min(launches.size(), size - 1);
  std::memcpy(text, launches.data(), length);
  text[length] = 0;
}
