// tools/plan_gpus.h
//
// `sluice plan --gpus`: what a model needs of every GPU and host, by ZeRO stage and offload, which
// of these ways fit, and which to take (offload/plan/zero_need.h).
//
// Keys of a plan for several GPUs:
//   model                        where it is from, if from a file
//   parameters                   of the model; P in formulas
//   two_units_parameters         of its two largest units; T
//   largest_unit_parameters      of its largest unit; L
//   gpus                         N
//   gpus_per_host                g
//   hosts                        how many there are
//   drives_per_host              --nvme-path, or 1
//   bytes_per_parameter.param    in compute
//   bytes_per_parameter.grad     of gradients
//   bytes_per_parameter.states   of the optimizer, as the state format has them
//   machine.hbm_bytes            of a GPU; null: not known
//   machine.ram_bytes            of a host, likewise
//   machine.nvme_bytes           of a host, likewise
//   machine.headroom_percent     of HBM, for activations
//   ways                         all there are
//   ways.stage                   of ZeRO
//   ways.offload_optimizer       none, cpu or nvme: where the optimizer's states are
//   ways.offload_param           likewise, parameters
//   ways.gpu_bytes               of each GPU: what is kept, what moves, and the exchange's room
//   ways.gpu_kept_bytes          model states that stay there, alone
//   ways.gpu_moving_bytes        what is gathered or on its way, of two units at most
//   ways.gpu_exchange_bytes      exchange_bytes, but with --device host, where they are in RAM, 0
//   ways.ram_bytes               of each host
//   ways.ram_least_bytes         the same if gradients that may go to NVMe do
//   ways.nvme_bytes              of each host
//   ways.nvme_most_bytes         the same if gradients that may go to NVMe do
//   ways.drive_bytes             of each drive, of nvme_bytes
//   ways.buffers_bytes           of a rank, in RAM; B
//   ways.exchange_bytes          what a rank's gradients pass through among ranks; E
//   ways.formulas                of gpu_kept, gpu_moving, exchange, ram and nvme
//   ways.fits                    yes; tight: with less headroom; no; unknown
//   ways.short_of                hbm, ram or nvme: what is too small, or not known; else null
//   ways.gradients_on_nvme       whether it fits only so
//   recommended                  one of them, or null
//   recommended.stage            as above
//   recommended.offload_optimizer  as above
//   recommended.offload_param    as above
//   recommended.gpu_free_bytes   of HBM, for activations
//   reason                       why this one, or why none

#ifndef SLUICE_TOOLS_PLAN_GPUS_H_
#define SLUICE_TOOLS_PLAN_GPUS_H_

#include "offload/run/factory.h"
#include "tools/hf_model.h"
#include "tools/output.h"
#include "tools/plan_options.h"

namespace sluice::tools {

// config: what `options` say. Prints a page, or JSON. kFailed if nothing fits what is known.
ExitCode PlanGpus(const PlanOptions& options, const HfModel& model, const RuntimeConfig& config);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_PLAN_GPUS_H_
