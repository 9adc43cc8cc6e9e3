// offload/checkpoint/names.h
//
// Names in a directory of checkpoints, and of files in a checkpoint.
//
//   .<tag>.<id>.saving     a save under way, or what is left of one, or of what it has replaced
//   .<tag>.<id>.replaced   what lay under the tag where directories can't change places at once;
//                          where nothing has the tag, it is the checkpoint of that tag
//   .<tag>.<id>.removing   on its way out
//   .latest.<id>.saving    a file: the next `latest`
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_NAMES_H_
#define SLUICE_OFFLOAD_CHECKPOINT_NAMES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "offload/checkpoint/layout.h"

namespace sluice {

inline constexpr std::string_view kLatest = "latest";
inline constexpr std::string_view kIndexName = "checkpoint.json";
inline constexpr size_t kSavedNameMax = 4096;  // bytes of a tensor's name
inline constexpr size_t kTagMax = 200;

enum class Hidden { kSaving, kReplaced, kRemoving };

struct HiddenName {
  std::string tag;
  uint64_t id = 0;
  Hidden kind = Hidden::kSaving;
};

std::string HiddenNameOf(std::string_view tag, uint64_t id, Hidden kind);
// Nothing if it is none.
std::optional<HiddenName> ParseHiddenName(std::string_view name);

// InvalidArgument where it can't be a directory's name here.
absl::Status CheckTag(std::string_view tag);
// The same for the name under which something is attached.
absl::Status CheckAttachmentName(std::string_view name);

std::string PartName(uint32_t rank);  // "rank-00000.json"
std::string DataName(uint32_t rank, SavedFile file);
std::string AttachmentFile(uint32_t rank, std::string_view name);
// Whether a file of this name in a checkpoint is of the checkpoint, and not somebody else's.
bool IsOurs(std::string_view name);

std::string Join(std::string_view directory, std::string_view name);
// "." of a relative name.
std::string ParentOf(std::string_view path);

bool IsText(std::string_view text);  // UTF-8 without control characters
// What can be shown of any bytes: valid, and not too long.
std::string Shown(std::string_view text);
// `text`, which is UTF-8, as a JSON string.
void AppendQuoted(std::string* to, std::string_view text);
// 16 digits.
std::optional<uint64_t> ParseHex(std::string_view text);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_NAMES_H_
