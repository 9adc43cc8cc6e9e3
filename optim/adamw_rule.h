// optim/adamw_rule.h
//
// AdamW and Adam (adamw.h) as an update rule. It keeps exp_avg and exp_avg_sq beside the master;
// its hyperparameters are an AdamWHyper. Over fp32 states it is one fused pass, on CPUs and GPUs.

#ifndef SLUICE_OPTIM_ADAMW_RULE_H_
#define SLUICE_OPTIM_ADAMW_RULE_H_

#include <memory>

#include "optim/update_rule.h"

namespace sluice {

std::shared_ptr<const UpdateRule> MakeAdamW();

}  // namespace sluice

#endif  // SLUICE_OPTIM_ADAMW_RULE_H_
