// The kernels on rows of logits.
#include "cross_entropy.h"
#include "kernels.h"
#include "score.h"
#include "softmax.h"

namespace equikern {
namespace EQK_ISA {

void softmax_mean(const RowProblem& p) {
  with_float(p.dtype, [&](auto t) { softmax_mean_typed<decltype(t)>(p); });
}
void softmax_mean_backward(const RowProblem& p) {
  with_float(p.dtype, [&](auto t) { softmax_mean_backward_typed<decltype(t)>(p); });
}
void score(const RowProblem& p) {
  with_float(p.dtype, [&](auto t) { score_typed<decltype(t)>(p); });
}
void score_select(const RowProblem& p) {
  with_float(p.dtype, [&](auto t) { score_select_typed<decltype(t)>(p); });
}
void cross_entropy(const RowProblem& p) {
  with_float(p.dtype, [&](auto t) { cross_entropy_typed<decltype(t)>(p); });
}

}  // namespace EQK_ISA
}  // namespace equikern
