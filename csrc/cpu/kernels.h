// What the files of this folder call in each other.
#pragma once

#include "problem.h"

namespace equikern {
namespace EQK_ISA {

void orbit_of_volumes(const Problem& p);
void reduce_of_volumes(const Problem& p);
void dot_of_volumes(const Problem& p);
void select_of_volumes(const Problem& p);

void orbit_of_matrices(const Problem& p);
void reduce_of_matrices(const Problem& p);
void dot_of_matrices(const Problem& p);
void select_of_matrices(const Problem& p);

void reduce_backward(const Problem& p);
void variance(const Problem& p);

void coarse(const Coarse& c);

void softmax_mean(const RowProblem& p);
void softmax_mean_backward(const RowProblem& p);
void score(const RowProblem& p);
void score_select(const RowProblem& p);
void cross_entropy(const RowProblem& p);

}  // namespace EQK_ISA
}  // namespace equikern
