#include "offload/checkpoint/manifest_text.h"

#include <charconv>
#include <iterator>

#include "core/checksum.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/seal.h"

namespace sluice {

namespace {

constexpr std::string_view kSealStart = "\"checksum\":\"";
constexpr std::string_view kSealEnd = "\"}\n";
constexpr size_t kSealBytes = kSealStart.size() + 16 + kSealEnd.size();

template <typename... T>
void Append(std::string* to, fmt::format_string<T...> what, T&&... of) {
  fmt::format_to(std::back_inserter(*to), what, std::forward<T>(of)...);
}

// `"key":[` rows `],`, where `row(i)` appends one.
template <typename Row>
void AppendRows(std::string* to, std::string_view key, size_t count, Row row) {
  Append(to, "\"{}\":[", key);
  for (size_t i = 0; i < count; ++i) {
    *to += i == 0 ? "\n" : ",\n";
    row(i);
  }
  *to += "],\n";
}

}  // namespace

uint64_t ChecksumOf(std::string_view text) {
  return SeededChecksum(std::as_bytes(std::span(text.data(), text.size())), BlockIndex(0), 0);
}

std::string FirstLine(std::string_view format) {
  return fmt::format("{{\"format\":\"{}\",\"version\":{},\n", format, kCheckpointVersion);
}

void Seal(std::string* text) {
  const uint64_t checksum = ChecksumOf(*text);
  Append(text, "{}{:016x}{}", kSealStart, checksum, kSealEnd);
}

absl::Status CheckSeal(std::string_view text, std::string_view format, const std::string& source) {
  const std::string first = FirstLine(format);
  const std::string_view start = std::string_view(first).substr(0, first.find(":", 10) + 1);
  if (text.empty()) return absl::DataLossError(fmt::format("{} is empty", source));
  if (!text.starts_with(start))
    return absl::DataLossError(
        fmt::format("{} is not a {} of Sluice's, or its beginning was changed", source, format));
  int version = 0;
  const std::string_view digits = text.substr(start.size(), 9);
  std::from_chars(digits.data(), digits.data() + digits.size(), version);
  if (version != kCheckpointVersion && version > 0)
    return absl::FailedPreconditionError(
        fmt::format("{} is of version {}, and this Sluice reads version {}: load it with one that "
                    "is as new as the one that saved it",
                    source, version, kCheckpointVersion));
  if (!text.starts_with(first) || text.size() < first.size() + kSealBytes ||
      !text.ends_with(kSealEnd))
    return absl::DataLossError(fmt::format("{} was cut off, or changed by hand", source));
  const std::string_view sealed = text.substr(0, text.size() - kSealBytes);
  const std::string_view seal = text.substr(sealed.size());
  if (!seal.starts_with(kSealStart) ||
      ParseHex(seal.substr(kSealStart.size(), 16)) != ChecksumOf(sealed))
    return absl::DataLossError(fmt::format(
        "{} was changed by hand, or damaged: it isn't what its checksum is of", source));
  return absl::OkStatus();
}

std::string TensorRows(std::span<const SavedTensor> tensors) {
  std::string rows;
  AppendRows(&rows, "tensors", tensors.size(), [&](size_t i) {
    const SavedTensor& tensor = tensors[i];
    rows += '[';
    AppendQuoted(&rows, tensor.name);
    Append(&rows, ",{},{},\"{}\"", tensor.elements, tensor.step, tensor.type.name());
    for (const std::string& field : tensor.fields) Append(&rows, ",\"{}\"", field);
    rows += ']';
  });
  return rows;
}

std::string TextOf(const PartText& of, std::string_view tensor_rows) {
  const SavedPart& part = of.part;
  std::string text = FirstLine(kPartFormat);
  Append(&text, "\"id\":\"{:016x}\",\"rank\":{},\"ranks\":{},\"frozen_id\":\"{:016x}\",\n", part.id,
         part.rank, part.ranks, part.frozen_id);
  Append(&text, "\"tensors_checksum\":\"{:016x}\",\n", of.tensors_checksum);
  AppendRows(&text, "data", of.data.size(), [&](size_t i) {
    const PartText::DataFile& file = of.data[i];
    Append(&text, "[{},\"{:016x}\",{}]", file.header_bytes, file.header_checksum, file.bytes);
  });
  AppendRows(&text, "attachments", part.attachments.size(), [&](size_t i) {
    const SavedPart::Attachment& attachment = part.attachments[i];
    text += '[';
    AppendQuoted(&text, attachment.name);
    Append(&text, ",{},\"{:016x}\"]", attachment.bytes, attachment.checksum);
  });
  text += tensor_rows;
  AppendRows(&text, "pieces", part.pieces.size(), [&](size_t i) {
    const SavedPiece& piece = part.pieces[i];
    Append(&text, "[{},{},{},{},\"{:016x}\"]", piece.tensor, piece.field, piece.first,
           piece.elements, part.checksums[i]);
  });
  Seal(&text);
  return text;
}

std::string TextOf(const IndexText& index) {
  std::string text = FirstLine(kIndexFormat);
  Append(&text, "\"id\":\"{:016x}\",\"sequence\":{},\"steps\":{},\"saved_at\":{},\n", index.id,
         index.sequence, index.steps, index.saved_at);
  AppendRows(&text, "parts", index.parts.size(), [&](size_t i) {
    Append(&text, "[{},\"{:016x}\"]", index.parts[i].bytes, index.parts[i].checksum);
  });
  AppendRows(&text, "files", index.files.size(), [&](size_t i) {
    text += '[';
    AppendQuoted(&text, index.files[i].name);
    Append(&text, ",{}]", index.files[i].bytes);
  });
  Seal(&text);
  return text;
}

absl::StatusOr<std::string> ReadText(Files* files, const std::string& path, uint64_t bytes_max) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<InputFile> file, files->Open(path));
  if (file->size() > bytes_max)
    return absl::DataLossError(fmt::format("{} has {} bytes, more than the {} that it can have",
                                           path, file->size(), bytes_max));
  std::string text(file->size(), '\0');
  SLUICE_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace sluice
