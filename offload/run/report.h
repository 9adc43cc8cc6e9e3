// offload/run/report.h
//
// What people and tools are told, as JSON: placements, a runtime's state, the machine. The keys are
// listed here, from where scripts/make-api-docs takes them; a.b is key b of the object a, and
// a.TIER stands for a.hbm, a.pinned and a.nvme, and a.TIMES for a.count, a.p50, a.p99 and a.max, in
// nanoseconds (percentiles within 1/32), and a.WAIT for a.fetch (units on their way to HBM, or that
// make room), a.update, a.gradients, a.ranks (others) and a.drive (of any of these: only reads and
// writes were left). A test compares the lists with real reports.
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
//   drives                       by path; the list after the next
//   counters                     since the start or sluice_reset_counters; the next list
//   histograms_ns.queue_wait.TIMES    transfers, till a drive has a place for them
//   histograms_ns.read.TIMES          from then on; of all drives together
//   histograms_ns.write.TIMES
//   histograms_ns.acquire.TIMES       of units, till they were there; 0 of those that were
//   histograms_ns.update_chunk.TIMES  a chunk's arithmetic, from its first part to its last
//   steps.count                  timed, from one step to the next, since the start or likewise
//   steps.seconds.p50            of the last 1024 at most, as the next two and efficiency; or null
//   steps.seconds.p99
//   steps.seconds.max
//   steps.floor_seconds.total    of a step, by steps.rates; this and its terms: plan/floor.h
//   steps.floor_seconds.forward  null without rates, as the rates are
//   steps.floor_seconds.backward
//   steps.floor_seconds.io
//   steps.floor_seconds.update
//   steps.floor_seconds.checksum
//   steps.floor_seconds.copies
//   steps.floor_seconds.gradients
//   steps.floor_seconds.spill
//   steps.rates.forward_seconds  those that were set last (sluice_set_rates)
//   steps.rates.backward_seconds
//   steps.rates.nvme_bytes
//   steps.rates.update_elements
//   steps.rates.checksum_bytes
//   steps.rates.copy_bytes
//   steps.rates.shared_cores
//   steps.efficiency             floor over measured, the median; run/step_times.h says which floor
//   steps.latest_seconds         the last 64 steps, one by one
//   steps.latest_efficiencies    likewise; null where no rates were set
//   waited_for.of_seconds        from the first acquisition or step to the last
//   waited_for.seconds.WAIT      in which an acquisition, step or drain waited
//   waited_for.share.WAIT        of of_seconds
//   waited_for.words             all this as a sentence or two
//   trace_spans_dropped          spans for which there was no room
//   loss_scale                   to multiply the next loss by
//   loaded_from                  the checkpoint, and why not the newest, if so; or empty
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
//
// Keys of each of the drives:
//   path                         directory
//   read_rate                    that blocks were shared out by, and the next
//   write_rate
//   extents_bytes                on it
//   in_flight_max                transfers that it has at a time
//   reads                        this and the rest since the start or sluice_reset_counters
//   read_bytes
//   writes
//   write_bytes
//   failed                       transfers
//   queue_wait_ns.TIMES          of its transfers, as in histograms_ns
//   read_ns.TIMES
//   write_ns.TIMES

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
