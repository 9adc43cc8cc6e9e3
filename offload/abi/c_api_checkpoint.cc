// The C ABI of checkpoints: offload/sluice_checkpoint.h says what these functions promise.

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/json_text.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/abi/c_api_internal.h"
#include "offload/checkpoint/reader.h"
#include "offload/checkpoint/summary_json.h"
#include "offload/run/run_state.h"
#include "offload/sluice_checkpoint.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kAttachmentsMax = 1 << 16;

absl::StatusOr<SaveRequest> ReadSave(const sluice_save_args* args) {
  SLUICE_ASSIGN_OR_RETURN(const sluice_save_args a, ReadStruct(args, sluice_save_args{}, "args"));
  SLUICE_RETURN_IF_ERROR(NotNull(a.directory, "args.directory"));
  SLUICE_RETURN_IF_ERROR(NotNull(a.tag, "args.tag"));
  if (a.id == 0)
    return absl::InvalidArgumentError("args.id is 0: give each save a number of its own");
  if (a.attachment_count > kAttachmentsMax) {
    return absl::InvalidArgumentError(fmt::format("args.attachment_count is {}: at most {}",
                                                  a.attachment_count, kAttachmentsMax));
  }
  SaveRequest request{.place = {.directory = a.directory, .tag = a.tag, .id = a.id},
                      .latest = a.latest != 0,
                      .without_frozen = a.without_frozen != 0};
  if (a.attachment_count > 0) SLUICE_RETURN_IF_ERROR(NotNull(a.attachments, "args.attachments"));
  for (uint64_t i = 0; i < a.attachment_count; ++i) {
    const sluice_attachment& one = a.attachments[i];
    SLUICE_RETURN_IF_ERROR(NotNull(one.name, "attachments[].name"));
    if (one.bytes > 0) SLUICE_RETURN_IF_ERROR(NotNull(one.data, "attachments[].data"));
    request.attachments.emplace_back(one.name,
                                     std::string(static_cast<const char*>(one.data), one.bytes));
  }
  return request;
}

absl::StatusOr<LoadRequest> ReadLoad(const sluice_load_args* args) {
  SLUICE_ASSIGN_OR_RETURN(const sluice_load_args a, ReadStruct(args, sluice_load_args{}, "args"));
  SLUICE_RETURN_IF_ERROR(NotNull(a.directory, "args.directory"));
  constexpr uint32_t kKnown = SLUICE_LOAD_WITHOUT_STATES | SLUICE_LOAD_SOME;
  SLUICE_RETURN_IF_ERROR(CheckRange(int64_t{a.reserved}, 0, 0, "args.reserved"));
  if ((a.flags & ~kKnown) != 0)
    return absl::InvalidArgumentError(fmt::format("args.flags has unknown bits: {:#x}", a.flags));
  return LoadRequest{.directory = a.directory,
                     .tag = a.tag == nullptr ? "" : a.tag,
                     .without_states = (a.flags & SLUICE_LOAD_WITHOUT_STATES) != 0,
                     .some = (a.flags & SLUICE_LOAD_SOME) != 0};
}

absl::StatusOr<Json> Describe(const char* directory, const char* tag) {
  if (tag == nullptr) {
    SLUICE_ASSIGN_OR_RETURN(const auto all, ListCheckpoints(RealFiles(), directory));
    Json list = Json::array();
    for (const CheckpointSummary& one : all) list.push_back(SummaryObject(one));
    return Json{{"checkpoints", std::move(list)}};
  }
  SLUICE_ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(RealFiles(), directory, tag));
  Json json = SummaryObject(reader->summary());
  json["path"] = reader->path();
  json["note"] = reader->note();
  Json tensors = Json::array();
  for (const SavedTensor& tensor : reader->tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"elements", tensor.elements},
                       {"step", tensor.step},
                       {"dtype", tensor.type.name()},
                       {"fields", tensor.fields}});
  }
  json["tensors"] = std::move(tensors);
  Json attachments = Json::array();
  for (const SavedPart& part : reader->parts()) {
    for (const SavedPart::Attachment& one : part.attachments)
      attachments.push_back({{"rank", part.rank}, {"name", one.name}, {"bytes", one.bytes}});
  }
  json["attachments"] = std::move(attachments);
  return json;
}

}  // namespace

sluice_status sluice_save(sluice_runtime runtime, const sluice_save_args* args,
                          sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    SLUICE_ASSIGN_OR_RETURN(SaveRequest request, ReadSave(args));
    *ticket = r->Checkpoint(std::move(request));
    return absl::OkStatus();
  });
}

sluice_status sluice_load(sluice_runtime runtime, const sluice_load_args* args,
                          sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    SLUICE_ASSIGN_OR_RETURN(LoadRequest request, ReadLoad(args));
    *ticket = r->Checkpoint(std::move(request));
    return absl::OkStatus();
  });
}

sluice_status sluice_checkpoint_describe(const char* directory, const char* tag, char* json,
                                         size_t capacity, size_t* needed) {
  return Guarded([&]() -> absl::Status {
    SLUICE_RETURN_IF_ERROR(NotNull(directory, "directory"));
    SLUICE_ASSIGN_OR_RETURN(Json described, Describe(directory, tag));
    return WriteText(JsonText(std::move(described), 2), json, capacity, needed);
  });
}

sluice_status sluice_checkpoint_attachment(const char* directory, const char* tag, uint32_t rank,
                                           const char* name, void* data, size_t capacity,
                                           size_t* needed) {
  return Guarded([&]() -> absl::Status {
    SLUICE_RETURN_IF_ERROR(NotNull(directory, "directory"));
    SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
    SLUICE_RETURN_IF_ERROR(NotNull(needed, "needed"));
    if (capacity > 0) SLUICE_RETURN_IF_ERROR(NotNull(data, "data"));
    SLUICE_ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(RealFiles(), directory,
                                                                      tag == nullptr ? "" : tag));
    SLUICE_ASSIGN_OR_RETURN(const std::string bytes, reader->Attachment(rank, name));
    *needed = bytes.size();
    std::copy_n(bytes.data(), std::min(capacity, bytes.size()), static_cast<char*>(data));
    return absl::OkStatus();
  });
}

sluice_status sluice_checkpoint_prune(const char* directory, uint32_t keep, uint64_t every) {
  return Guarded([&]() -> absl::Status {
    SLUICE_RETURN_IF_ERROR(NotNull(directory, "directory"));
    return PruneCheckpoints(RealFiles(), directory, keep, every).status();
  });
}
