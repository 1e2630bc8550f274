// The kernels of one instruction set and those of images, permutations and tokens. The files of this folder are compiled
// once for each set, which EQK_ISA names.
#include "kernels.h"

#include "dot.h"
#include "orbit.h"
#include "reduce.h"
#include "tokens.h"

#define EQK_TEXT_OF(name) #name
#define EQK_TEXT(name) EQK_TEXT_OF(name)

namespace equikern {
namespace EQK_ISA {
namespace {

void orbit(const Problem& p) {
  if (p.kind == kMatrix) return orbit_of_matrices(p);
  if (p.volumes) return orbit_of_volumes(p);
  if (p.exact) return with_bits(p.dtype, [&](auto e) { orbit_typed<decltype(e), true>(p); });
  with_float(p.dtype, [&](auto t) { orbit_typed<decltype(t), false>(p); });
}

void reduce(const Problem& p) {
  if (p.kind == kMatrix) return reduce_of_matrices(p);
  if (p.volumes) return reduce_of_volumes(p);
  with_number(p.dtype, [&](auto t) { reduce_typed<decltype(t)>(p); });
}

void orbit_dot(const Problem& p) {
  if (p.kind == kMatrix) return dot_of_matrices(p);
  if (p.volumes) return dot_of_volumes(p);
  with_float(p.dtype, [&](auto t) { dot_typed<decltype(t)>(p); });
}

void select(const Problem& p) {
  if (p.scores) p.scores_double ? choose_views<double>(p) : choose_views<float>(p);
  if (p.kind == kMatrix) return select_of_matrices(p);
  if (p.volumes) return select_of_volumes(p);
  with_bits(p.dtype, [&](auto e) { select_typed<decltype(e)>(p); });
}

bool tokens(const Problem& p, int64_t* outside) {
  const auto run = [&](auto id) {
    typedef decltype(id) E;
    const E* const found = find_outside<E>(p);
    found ? void(*outside = *found) : tokens_typed<E>(p);
    return !found;
  };
  return element_size(p.dtype) == 4 ? run(int32_t()) : run(int64_t());
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels{EQK_TEXT(EQK_ISA), orbit, reduce, orbit_dot, reduce_backward, variance, select, tokens, softmax_mean, softmax_mean_backward,
                      score, score_select, cross_entropy, coarse};

}  // namespace EQK_ISA
}  // namespace equikern
