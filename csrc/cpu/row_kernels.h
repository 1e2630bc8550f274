// The kernels on rows of logits, for one instruction set; every translation unit that includes this sets EQK_ISA.
#pragma once

#include "cross_entropy.h"
#include "score.h"
#include "softmax.h"

namespace equikern {
namespace EQK_ISA {

void softmax_mean(const RowProblem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return softmax_mean_typed<float>(p);
    case Dtype::kFloat64: return softmax_mean_typed<double>(p);
    case Dtype::kFloat16: return softmax_mean_typed<Half>(p);
    default: return softmax_mean_typed<BFloat16>(p);
  }
}

void softmax_mean_backward(const RowProblem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return softmax_mean_backward_typed<float>(p);
    case Dtype::kFloat64: return softmax_mean_backward_typed<double>(p);
    case Dtype::kFloat16: return softmax_mean_backward_typed<Half>(p);
    default: return softmax_mean_backward_typed<BFloat16>(p);
  }
}

void score(const RowProblem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return score_typed<float>(p);
    case Dtype::kFloat64: return score_typed<double>(p);
    case Dtype::kFloat16: return score_typed<Half>(p);
    default: return score_typed<BFloat16>(p);
  }
}

void score_select(const RowProblem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return score_select_typed<float>(p);
    case Dtype::kFloat64: return score_select_typed<double>(p);
    case Dtype::kFloat16: return score_select_typed<Half>(p);
    default: return score_select_typed<BFloat16>(p);
  }
}

void cross_entropy(const RowProblem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return cross_entropy_typed<float>(p);
    case Dtype::kFloat64: return cross_entropy_typed<double>(p);
    case Dtype::kFloat16: return cross_entropy_typed<Half>(p);
    default: return cross_entropy_typed<BFloat16>(p);
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
