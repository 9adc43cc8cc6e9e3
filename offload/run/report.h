// offload/run/report.h
//
// What people and tools are told, as JSON: placements, a runtime's state, the machine. The keys are
// listed here, from where scripts/make-api-docs takes them; a.b is key b of the object a, and
// a.TIER stands for a.hbm, a.pinned and a.nvme. A test compares the lists with real reports.
//
// Keys of a plan:
//   parameters                   values of the model
//   parameters_updated           of those that are not frozen
//   units                        how many there are
//   tensors
//   chunks                       pieces of states that move together
//   chunk_elements               the most that one spans
//   param_dtype                  of parameters in compute, of units that say none of their own
//   grad_dtype                   of gradients, likewise
//   types                        units by type: param_dtype, grad_dtype, units, param_bytes
//   state_format                 how optimizer states lie
//   budgets_bytes.TIER           as given or chosen; null: no limit
//   planned_bytes.TIER           what will be taken
//   hbm.resident_bytes           units that live there for good
//   hbm.cache_bytes              the room that the others are moved through
//   hbm.gradients_bytes          gradients that live there: where states do
//   hbm.states_bytes             states that live there
//   hbm.exchange_bytes           the room that gradients and shards pass through among ranks
//   pinned.least_bytes           what it must hold, whatever the budgets
//   pinned.gradients_bytes       gradients that live there
//   pinned.params_bytes          parameters that live there
//   pinned.states_bytes          states that live there
//   pinned.state_buffers         buffers that states are moved through
//   pinned.state_buffer_bytes    of one
//   pinned.param_buffers         buffers that parameters are moved through
//   pinned.param_buffer_bytes    of one
//   pinned.grad_buffers          buffers that gradients are moved through, if any live on NVMe
//   pinned.grad_buffer_bytes     of one
//   pinned.exchange_bytes        as hbm's, where HBM is in place
//   nvme.states_bytes            states that live there
//   nvme.params_bytes            parameters that live there
//   nvme.gradients_bytes         gradients that live there, since pinned memory can't hold them
//   params_home_bytes.TIER       parameters that this rank keeps, by where they live
//   step_traffic.elements_updated     by the host, of a step in which every tensor has a gradient
//   step_traffic.nvme_read_bytes      states, parameters and gradients read
//   step_traffic.nvme_write_bytes     and written
//   step_traffic.read_ahead_bytes     of what is read, what can be there before the step
//   step_traffic.spilled_bytes        of what is written, gradients, during backward
//   step_traffic.checksummed_bytes    read and written
//   step_traffic.to_hbm_bytes         parameters copied into HBM: brought there, and updated
//   step_traffic.gradient_bytes       gradients copied out of HBM
//
// Keys of the device, in a plan only:
//   device.kind                  host or cuda
//   device.index                 of the GPU
//   device.reason                why this one
//
// Keys of a report, beside those of a plan:
//   bytes_now.TIER               taken; on NVMe what the file system says
//   engine                       which I/O engine, and how it runs
//   executor                     what updates run on
//   cores.allowed                hardware threads that this process may use
//   cores.machine                that there are
//   cores.workers                threads that update
//   cores.compute                which compute, and how they wait for each other
//   cores.update                 which update, and why
//   cores.nodes                  what is bound to a NUMA node, and why
//   device                       what computes
//   device_reason                why this one
//   pinned_memory                whether the device's copies can use it directly
//   pinned_huge_page_bytes       of pinned memory, what lies on huge pages now; null if unknown
//   memory                       the pages of the arenas, and why RAM was not checked, if so
//   ranks.rank                   which this is
//   ranks.ranks                  of how many
//   ranks.local_rank             which of those of this host
//   ranks.local_ranks            how many these are
//   ranks.zero_stage             as asked for
//   ranks.communication          how they reach each other
//   ranks.rounds                 of agreement on what comes next
//   ranks.traffic                by group and kind: operations, sent_bytes, received_bytes
//   update_rule                  how gradients change parameters
//   vector_target                of the arithmetic
//   paths                        each swap file: file system, direct I/O, alignment
//   drives                       by path: rates, extents_bytes, in_flight_max, and its counters
//   counters                     since the start or sluice_reset_counters; the next list
//   trace_spans_dropped          spans for which there was no room
//   loss_scale                   to multiply the next loss by
//   failure                      the first error of a deferred operation; empty if none
//
// Keys of the counters:
//   acquires                     of units
//   demand_misses                acquisitions that had to wait for a fetch that no plan had begun
//   evictions                    of units from HBM
//   trace_departures             acquisitions out of the learned order
//   fetches                      of units into HBM
//   fetch_bytes
//   stall_fetch_ns               acquisitions waiting for a fetch
//   stall_update_ns              acquisitions waiting for the unit's update
//   steps                        applied
//   steps_skipped                for overflow
//   elements_updated
//   chunks_updated
//   update_compute_ns            workers' time in updates, summed over them
//   nvme_reads
//   nvme_read_bytes
//   nvme_writes
//   nvme_write_bytes
//   nvme_gradient_read_bytes     of these, of gradients that live on NVMe
//   nvme_gradient_write_bytes
//   misused_releases             only if there were any: of units that were not acquired

#ifndef SLUICE_OFFLOAD_RUN_REPORT_H_
#define SLUICE_OFFLOAD_RUN_REPORT_H_

#include <string>

#include "core/device_choice.h"
#include "offload/plan/placement.h"

namespace sluice {

std::string PlacementJson(const ModelLayout& layout, const DeviceChoice& device,
                          const Placement& placement, const Budgets& budgets);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_REPORT_H_
