#include "offload/checkpoint/removal.h"

#include <optional>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

absl::Status RemoveOurs(Files* files, const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> names, files->List(path));
  std::string foreign;
  for (const std::string& name : names) {
    const std::string file = Join(path, name);
    if (!IsOurs(name) || files->IsDirectory(file)) {
      foreign += (foreign.empty() ? "" : ", ") + Shown(name);
      continue;
    }
    const absl::Status removed = files->Remove(file);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  if (foreign.empty()) return files->Remove(path);
  return absl::FailedPreconditionError(
      fmt::format("{} stays, because it holds what is not Sluice's: {}", path, foreign));
}

absl::Status RemoveHidden(Files* files, const std::string& directory, const std::string& name) {
  const std::string path = Join(directory, name);
  if (!files->IsDirectory(path)) return files->Remove(path);
  const absl::Status removed = RemoveOurs(files, path);
  const std::optional<HiddenName> hidden = ParseHiddenName(name);
  if (!absl::IsFailedPrecondition(removed) || !hidden) return removed;
  const std::string visible = Join(directory, hidden->tag);
  const auto names = files->List(directory);
  if (!names.ok()) return names.status();
  for (const std::string& other : *names)
    if (other == hidden->tag) return removed;
  SLUICE_RETURN_IF_ERROR(files->Rename(path, visible));
  return absl::FailedPreconditionError(
      fmt::format("{} stays, without its checkpoint: {}", visible, Message(removed)));
}

}  // namespace sluice
