// The C ABI over the runtime: each function checks its arguments and hands on.

#include <algorithm>
#include <cfloat>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "core/checksum.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"
#include "offload/plan/floor.h"
#include "offload/run/doctor.h"
#include "offload/run/report.h"
#include "offload/run/tickets.h"
#include "offload/sluice.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

namespace {

constexpr std::chrono::seconds kCallsEnd(2);

absl::Status Access(sluice_runtime handle, uint32_t tensor, int32_t field, void* data,
                    int32_t dtype, int64_t elements, bool write, sluice_ticket* ticket) {
  SLUICE_ASSIGN_OR_RETURN(const auto runtime, Runtimes().Get(handle, "runtime"));
  SLUICE_RETURN_IF_ERROR(NotNull(data, "data"));
  SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
  SLUICE_RETURN_IF_ERROR(CheckTensor(*runtime, tensor));
  SLUICE_RETURN_IF_ERROR(CheckElements(*runtime, tensor, elements));
  SLUICE_RETURN_IF_ERROR(CheckRange(field, SLUICE_PARAM, SLUICE_GRAD, "field"));
  SLUICE_ASSIGN_OR_RETURN(const ElementType type, ToElementType(*runtime, tensor, field, dtype));
  if (write && field == SLUICE_PARAM && !type.is_bytes())
    return absl::InvalidArgumentError("parameters can't be written: write SLUICE_MASTER");
  *ticket = runtime->Access({.write = write,
                             .tensor = TensorIndex(tensor),
                             .field = static_cast<Field>(field),
                             .data = static_cast<std::byte*>(data),
                             .type = type,
                             .done = nullptr});
  return absl::OkStatus();
}

absl::StatusOr<HardwareRates> ReadRates(const sluice_rates* given) {
  constexpr sluice_rates kDefaults = {.struct_size = sizeof(sluice_rates), .shared_cores = 1};
  SLUICE_ASSIGN_OR_RETURN(const sluice_rates rates, ReadStruct(given, kDefaults, "rates"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.forward_seconds, 0, DBL_MAX, "forward_seconds"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.backward_seconds, 0, DBL_MAX, "backward_seconds"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.nvme_bytes, 0, DBL_MAX, "nvme_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.update_elements, 0, DBL_MAX, "update_elements"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.checksum_bytes, 0, DBL_MAX, "checksum_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckReal(rates.copy_bytes, 0, DBL_MAX, "copy_bytes"));
  SLUICE_RETURN_IF_ERROR(CheckRange(rates.shared_cores, 0, 1, "shared_cores"));
  return HardwareRates{.forward_seconds = rates.forward_seconds,
                       .backward_seconds = rates.backward_seconds,
                       .nvme_bytes = rates.nvme_bytes,
                       .update_elements = rates.update_elements,
                       .checksum_bytes = rates.checksum_bytes,
                       .copy_bytes = rates.copy_bytes,
                       .shared_cores = rates.shared_cores != 0};
}

}  // namespace

uint32_t sluice_abi_version(void) { return SLUICE_ABI_VERSION; }
const char* sluice_version(void) { return SLUICE_VERSION; }
const char* sluice_last_error(void) { return LastError(); }

sluice_status sluice_plan(sluice_model model, const sluice_options* options, char* json,
                          size_t capacity, size_t* needed) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, SpecOf(model));
    SLUICE_ASSIGN_OR_RETURN(const RuntimeConfig config, ToConfig(options));
    SLUICE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(spec, config));
    return WriteText(PlacementJson(plan.layout, plan.device, plan.placement, plan.budgets), json,
                     capacity, needed);
  });
}

sluice_status sluice_runtime_create(sluice_model model, const sluice_options* options,
                                    sluice_runtime* runtime) {
  return Guarded([&]() -> absl::Status {
    // Before anything may fail: other ranks wait for this one.
    SLUICE_ASSIGN_OR_RETURN(RankLinks ranks, ToRankLinks(options));
    const auto or_give_up = [&](const absl::Status& status) {
      if (!status.ok()) ranks.GiveUp(status);
      return status;
    };
    SLUICE_RETURN_IF_ERROR(or_give_up(NotNull(runtime, "runtime")));
    const absl::StatusOr<ModelSpec> spec = SpecOf(model);
    SLUICE_RETURN_IF_ERROR(or_give_up(spec.status()));
    const absl::StatusOr<RuntimeConfig> config = ToConfig(options);
    SLUICE_RETURN_IF_ERROR(or_give_up(config.status()));
    SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<OffloadRuntime> made,
                            MakeRuntime(*spec, *config, std::move(ranks)));
    *runtime = AddRuntime(std::move(made));
    if (config->hbm != nullptr) config->hbm->Own();
    return absl::OkStatus();
  });
}

sluice_status sluice_runtime_destroy(sluice_runtime runtime) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(std::shared_ptr<OffloadRuntime> removed,
                            Runtimes().Remove(runtime, "runtime"));
    // Calls of other threads end soon: none lasts longer than a wait, unless a driver hangs in it.
    const auto until = std::chrono::steady_clock::now() + kCallsEnd;
    while (removed.use_count() > 1) {
      if (std::chrono::steady_clock::now() > until) {
        return absl::UnavailableError(
            "a call of another thread on this runtime does not return, so it was abandoned: it "
            "ends, and gives everything back, when that call has returned");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    absl::Status closed;
    std::get_deleter<RuntimeCloser>(removed)->result = &closed;
    removed.reset();
    return closed;
  });
}

sluice_status sluice_wait(sluice_runtime runtime, sluice_ticket ticket, int32_t timeout_ms) {
  try {
    const auto found = Runtimes().Get(runtime, "runtime");
    if (!found.ok()) return Return(found.status());
    const std::chrono::milliseconds timeout(std::clamp(timeout_ms, 0, 100));
    const std::optional<absl::Status> result = (*found)->Wait(ticket, timeout);
    if (!result) return SLUICE_PENDING;
    const sluice_status code = Return(*result);
    return Tickets::SaysNotOpen(*result) ? SLUICE_NOT_OPEN : code;
  } catch (const std::bad_alloc&) {
    return SLUICE_PENDING;  // for the words of an error: nothing has been taken from the ticket
  } catch (const std::exception& e) {
    return ReturnInternal(e.what());
  }
}

sluice_status sluice_iteration_begin(sluice_runtime runtime, uint32_t key, uint32_t flags) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckRange(key, 0, TraceBook::kKeys - 1, "key"));
    SLUICE_RETURN_IF_ERROR(CheckRange(flags, 0, SLUICE_ITERATION_BOUNDARY, "flags"));
    SLUICE_RETURN_IF_ERROR(r->failure());
    r->BeginIteration(key, (flags & SLUICE_ITERATION_BOUNDARY) != 0);
    return absl::OkStatus();
  });
}

sluice_status sluice_iteration_end(sluice_runtime runtime) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    r->EndIteration();
    return r->failure();
  });
}

sluice_status sluice_acquire(sluice_runtime runtime, uint32_t unit, void* stream,
                             sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
    *ticket = r->Acquire(UnitIndex(unit), {stream});
    return absl::OkStatus();
  });
}

sluice_status sluice_release(sluice_runtime runtime, uint32_t unit, void* stream) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
    return r->Release(UnitIndex(unit), {stream});
  });
}

sluice_status sluice_unit_view(sluice_runtime runtime, uint32_t unit, void** dlpack) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(dlpack, "dlpack"));
    SLUICE_RETURN_IF_ERROR(CheckUnit(*r, unit));
    SLUICE_ASSIGN_OR_RETURN(*dlpack, r->MakeView(UnitIndex(unit)));
    return absl::OkStatus();
  });
}

sluice_status sluice_tensor_query(sluice_runtime runtime, uint32_t tensor,
                                  sluice_tensor_info* info) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckStruct(info, "info"));
    SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
    const TensorLayout& t = r->layout().tensors()[tensor];
    WriteStruct({.struct_size = 0,
                 .unit = t.unit.value(),
                 .elements = t.elements,
                 .offset = t.offset,
                 .step = r->tensor_step(TensorIndex(tensor)),
                 .unwritten = r->tensor_unwritten(TensorIndex(tensor))},
                info);
    return absl::OkStatus();
  });
}

sluice_status sluice_tensor_set_step(sluice_runtime runtime, uint32_t tensor, int64_t step) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
    SLUICE_RETURN_IF_ERROR(CheckRange(step, 0, int64_t{1} << 48, "step"));
    r->set_tensor_step(TensorIndex(tensor), step);
    return absl::OkStatus();
  });
}

sluice_status sluice_step(sluice_runtime runtime, const sluice_step_args* args,
                          sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    StepRequest request = r->BlankStep();
    SLUICE_RETURN_IF_ERROR(ReadStep(args, *r, &request));
    *ticket = r->Step(std::move(request));
    return absl::OkStatus();
  });
}

sluice_status sluice_last_step(sluice_runtime runtime, sluice_step_result* result) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckStruct(result, "result"));
    const StepResult last = r->last_step();
    WriteStruct({.struct_size = 0,
                 .grad_norm = last.grad_norm,
                 .applied = last.applied ? 1 : 0,
                 .loss_scale = last.loss_scale},
                result);
    return absl::OkStatus();
  });
}

sluice_status sluice_loss_scale(sluice_runtime runtime, double* scale) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(scale, "scale"));
    *scale = r->last_step().loss_scale;
    return absl::OkStatus();
  });
}

sluice_status sluice_drain(sluice_runtime runtime, sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    *ticket = r->Drain();
    return absl::OkStatus();
  });
}

sluice_status sluice_read(sluice_runtime runtime, uint32_t tensor, int32_t field, void* data,
                          int32_t dtype, int64_t elements, sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    return Access(runtime, tensor, field, data, dtype, elements, false, ticket);
  });
}

sluice_status sluice_write(sluice_runtime runtime, uint32_t tensor, int32_t field, const void* data,
                           int32_t dtype, int64_t elements, sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    return Access(runtime, tensor, field, const_cast<void*>(data), dtype, elements, true, ticket);
  });
}

sluice_status sluice_report(sluice_runtime runtime, char* json, size_t capacity, size_t* needed) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    return WriteText(r->ReportJson(), json, capacity, needed);
  });
}

sluice_status sluice_floor(sluice_runtime runtime, const sluice_rates* given,
                           sluice_floor_terms* terms) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_ASSIGN_OR_RETURN(const HardwareRates rates, ReadRates(given));
    SLUICE_RETURN_IF_ERROR(CheckStruct(terms, "terms"));
    const FloorTerms t = Floor(r->Traffic(), rates);
    WriteStruct({0, t.total, t.forward, t.backward, t.io, t.update, t.checksum, t.copies,
                 t.gradients, t.spill},
                terms);
    return absl::OkStatus();
  });
}

sluice_status sluice_set_rates(sluice_runtime runtime, const sluice_rates* given) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_ASSIGN_OR_RETURN(const HardwareRates rates, ReadRates(given));
    r->SetRates(rates);
    return absl::OkStatus();
  });
}

sluice_status sluice_reset_counters(sluice_runtime runtime) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    r->ResetCounters();
    return absl::OkStatus();
  });
}

sluice_status sluice_trace_write(sluice_runtime runtime, const char* path) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(path, "path"));
    return r->WriteTrace(path);
  });
}

sluice_status sluice_trace_span(sluice_runtime runtime, const char* name, int64_t begin_ns,
                                int64_t end_ns) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
    if (begin_ns < 0 || end_ns < begin_ns) {
      return absl::InvalidArgumentError(
          fmt::format("a span from {} to {} ns: it must begin at 0 or later and not end before",
                      begin_ns, end_ns));
    }
    r->RecordCallerSpan(name, Nanos(begin_ns), Nanos(end_ns));
    return absl::OkStatus();
  });
}

sluice_status sluice_doctor(const char* path, char* json, size_t capacity, size_t* needed) {
  return Guarded([&]() -> absl::Status {
    return WriteText(DoctorJson(path == nullptr ? "" : path), json, capacity, needed);
  });
}

sluice_status sluice_checksum(const void* data, uint64_t bytes, uint32_t block, uint64_t generation,
                              uint64_t* checksum) {
  return Guarded([&]() -> absl::Status {
    if (bytes > 0) SLUICE_RETURN_IF_ERROR(NotNull(data, "data"));
    SLUICE_RETURN_IF_ERROR(NotNull(checksum, "checksum"));
    const ConstMemoryView view(static_cast<const std::byte*>(data), bytes);
    *checksum = SeededChecksum(view, BlockIndex(block), generation);
    return absl::OkStatus();
  });
}
