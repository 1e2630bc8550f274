// The kernels that move and reduce, for one instruction set; every translation unit that includes this sets EQK_ISA.
#pragma once

#include "dot.h"
#include "orbit.h"
#include "reduce.h"
#include "tokens.h"

namespace equikern {
namespace EQK_ISA {

// Of volumes, see volumes.h.
void orbit_of_volumes(const Problem& p);
void reduce_of_volumes(const Problem& p);
void dot_of_volumes(const Problem& p);
void select_of_volumes(const Problem& p);

void orbit(const Problem& p) {
  if (p.volumes) return orbit_of_volumes(p);
  if (p.exact) {
    switch (element_size(p.dtype)) {
      case 1: return orbit_typed<uint8_t, true>(p);
      case 2: return orbit_typed<uint16_t, true>(p);
      case 4: return orbit_typed<uint32_t, true>(p);
      default: return orbit_typed<uint64_t, true>(p);
    }
  }
  switch (p.dtype) {
    case Dtype::kFloat32: return orbit_typed<float, false>(p);
    case Dtype::kFloat64: return orbit_typed<double, false>(p);
    case Dtype::kFloat16: return orbit_typed<Half, false>(p);
    default: return orbit_typed<BFloat16, false>(p);
  }
}

void reduce(const Problem& p) {
  if (p.volumes) return reduce_of_volumes(p);
  switch (p.dtype) {
    case Dtype::kFloat32: return reduce_typed<float>(p);
    case Dtype::kFloat64: return reduce_typed<double>(p);
    case Dtype::kFloat16: return reduce_typed<Half>(p);
    default: return reduce_typed<BFloat16>(p);
  }
}

void orbit_dot(const Problem& p) {
  if (p.volumes) return dot_of_volumes(p);
  switch (p.dtype) {
    case Dtype::kFloat32: return dot_typed<float>(p);
    case Dtype::kFloat64: return dot_typed<double>(p);
    case Dtype::kFloat16: return dot_typed<Half>(p);
    default: return dot_typed<BFloat16>(p);
  }
}

void select(const Problem& p) {
  if (p.scores) p.scores_double ? choose_views<double>(p) : choose_views<float>(p);
  if (p.volumes) return select_of_volumes(p);
  switch (element_size(p.dtype)) {
    case 1: return select_typed<uint8_t>(p);
    case 2: return select_typed<uint16_t>(p);
    case 4: return select_typed<uint32_t>(p);
    default: return select_typed<uint64_t>(p);
  }
}

bool tokens(const Problem& p, int64_t size, int64_t* outside) {
  const auto run = [&](auto id) {
    typedef decltype(id) E;
    const E* const found = find_outside<E>(p, size);
    found ? void(*outside = *found) : tokens_typed<E>(p);
    return !found;
  };
  return element_size(p.dtype) == 4 ? run(int32_t()) : run(int64_t());
}

void softmax_mean(const RowProblem& p);
void softmax_mean_backward(const RowProblem& p);
void score(const RowProblem& p);
void score_select(const RowProblem& p);
void cross_entropy(const RowProblem& p);

}  // namespace EQK_ISA
}  // namespace equikern
