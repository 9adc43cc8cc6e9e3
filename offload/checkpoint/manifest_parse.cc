#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/checkpoint/manifest_text.h"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/seal.h"

namespace sluice {

namespace {

struct Cell {
  bool is_text = false;
  uint64_t number = 0;
  std::string text;

  std::optional<uint64_t> Whole(uint64_t most) const {
    return is_text || number > most ? std::nullopt : std::optional(number);
  }
  std::optional<uint64_t> Hex() const { return is_text ? ParseHex(text) : std::nullopt; }
};

// An object of numbers, strings, and lists of rows of them, as it comes: nothing is kept of it but
// the row that is being read.
class Table : public nlohmann::json_sax<nlohmann::json> {
 public:
  // Keys that have values, and those that have rows, which the rest are.
  Table(std::vector<std::string_view> keys, size_t values)
      : keys_(std::move(keys)), values_(values) {}

  absl::Status Parse(std::string_view text, const std::string& source) {
    const bool parsed = nlohmann::json::sax_parse(text.begin(), text.end(), this);
    for (size_t i = 0; parsed && i < keys_.size(); ++i)
      if (std::find(seen_.begin(), seen_.end(), i) == seen_.end() && Required(keys_[i]))
        wrong_ = fmt::format("it has no {}", keys_[i]);
    if (parsed && wrong_.empty()) return absl::OkStatus();
    if (wrong_.empty()) wrong_ = "it isn't the JSON that it should be";
    return absl::DataLossError(fmt::format("{}: {}", source, wrong_));
  }

  bool null() final { return false; }
  bool boolean(bool /*value*/) final { return false; }
  bool number_integer(number_integer_t /*value*/) final { return false; }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) final { return false; }
  bool binary(binary_t& /*value*/) final { return false; }
  bool number_unsigned(number_unsigned_t value) final { return Take({false, value, {}}); }
  bool string(string_t& value) final { return Take({true, 0, std::move(value)}); }
  bool start_object(size_t /*elements*/) final { return ++depth_ == 1; }
  bool end_object() final { return --depth_ == 0; }
  bool start_array(size_t /*elements*/) final {
    row_.clear();
    return ++depth_ <= 3 && depth_ > 1 && Check(key_ >= values_);
  }
  bool end_array() final { return --depth_ == 1 || Check(Row(keys_[key_], row_)); }
  bool key(string_t& name) final {
    key_ = static_cast<size_t>(std::find(keys_.begin(), keys_.end(), name) - keys_.begin());
    if (key_ == keys_.size()) {
      wrong_ = fmt::format("it has a key that isn't known: {}", Shown(name));
      return false;
    }
    if (std::find(seen_.begin(), seen_.end(), key_) != seen_.end()) return Check(false);
    seen_.push_back(key_);
    return true;
  }
  bool parse_error(size_t /*place*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) final {
    return false;
  }

 protected:
  // Of a key that has no rows, or one row of those that it has. False: it won't do.
  virtual bool Value(std::string_view key, const Cell& cell) = 0;
  virtual bool Row(std::string_view key, std::vector<Cell>& row) = 0;
  virtual bool Required(std::string_view /*key*/) const { return true; }

 private:
  bool Take(Cell cell) {
    if (depth_ == 1) return Check(key_ < values_ && Value(keys_[key_], cell));
    if (depth_ != 3 || row_.size() > 2 * kSavedFieldsMax) return Check(false);
    row_.push_back(std::move(cell));
    return true;
  }
  bool Check(bool fits) {
    if (!fits && wrong_.empty()) wrong_ = fmt::format("what it says of {} can't be", keys_[key_]);
    return fits;
  }

  const std::vector<std::string_view> keys_;
  const size_t values_;
  std::vector<size_t> seen_;
  size_t key_ = 0;
  int depth_ = 0;
  std::vector<Cell> row_;
  std::string wrong_;
};

// Puts it there if it is something.
template <typename T>
bool Put(const std::optional<uint64_t>& value, T* to) {
  if (value) *to = static_cast<T>(*value);
  return value.has_value();
}

std::optional<ElementType> TypeOf(const Cell& cell) {
  for (const ElementType type : {ElementType(FloatType::kF32), ElementType(FloatType::kBf16),
                                 ElementType(FloatType::kF16), ElementType::Bytes()})
    if (cell.is_text && cell.text == type.name()) return type;
  return std::nullopt;
}

class PartTable final : public Table {
 public:
  explicit PartTable(PartText* to)
      : Table({"format", "version", "checksum", "id", "rank", "ranks", "frozen_id",
               "tensors_checksum", "data", "attachments", "tensors", "pieces"},
              /*values=*/8),
        to_(to) {}

  bool has_tensors() const { return has_tensors_; }
  size_t data_rows() const { return data_rows_; }

 private:
  bool Value(std::string_view key, const Cell& cell) override {
    SavedPart& part = to_->part;
    if (key == "format" || key == "version" || key == "checksum") return true;  // the seal's
    if (key == "id") return Put(cell.Hex(), &part.id);
    if (key == "frozen_id") return Put(cell.Hex(), &part.frozen_id);
    if (key == "tensors_checksum") return Put(cell.Hex(), &to_->tensors_checksum);
    if (key == "ranks") return Put(cell.Whole(kSavedRanksMax), &part.ranks);
    return key == "rank" && Put(cell.Whole(kSavedRanksMax - 1), &part.rank);
  }

  bool Row(std::string_view key, std::vector<Cell>& row) override {
    if (key == "data") return Data(row);
    if (key == "attachments") return Attachment(row);
    if (key == "tensors") return Tensor(row);
    return key == "pieces" && Piece(row);
  }
  bool Required(std::string_view key) const override { return key != "tensors"; }

  bool Data(const std::vector<Cell>& row) {
    if (row.size() != 3 || data_rows_ == kSavedFiles) return false;
    PartText::DataFile& file = to_->data[data_rows_++];
    return Put(row[0].Whole(kSavedBytesMax), &file.header_bytes) &&
           Put(row[1].Hex(), &file.header_checksum) &&
           Put(row[2].Whole(kSavedBytesMax), &file.bytes);
  }
  bool Attachment(std::vector<Cell>& row) {
    SavedPart::Attachment attachment;
    if (row.size() != 3 || !row[0].is_text || !CheckAttachmentName(row[0].text).ok()) return false;
    attachment.name = std::move(row[0].text);
    for (const SavedPart::Attachment& other : to_->part.attachments)
      if (other.name == attachment.name) return false;
    const bool fits = Put(row[1].Whole(kSavedBytesMax), &attachment.bytes) &&
                      Put(row[2].Hex(), &attachment.checksum);
    to_->part.attachments.push_back(std::move(attachment));
    return fits;
  }
  bool Tensor(std::vector<Cell>& row) {
    has_tensors_ = true;
    SavedTensor tensor;
    if (row.size() < 4 || !row[0].is_text) return false;
    tensor.name = std::move(row[0].text);
    const std::optional<ElementType> type = TypeOf(row[3]);
    if (!type || !Put(row[1].Whole(kSavedElementsMax), &tensor.elements) ||
        !Put(row[2].Whole(UINT64_MAX), &tensor.step))
      return false;
    tensor.type = *type;
    for (size_t i = 4; i < row.size(); ++i) {
      if (!row[i].is_text) return false;
      tensor.fields.push_back(std::move(row[i].text));
    }
    to_->part.tensors.push_back(std::move(tensor));
    return true;
  }
  bool Piece(const std::vector<Cell>& row) {
    SavedPiece piece;
    uint64_t checksum = 0;
    if (row.size() != 5 || !Put(row[0].Whole(UINT32_MAX), &piece.tensor) ||
        !Put(row[1].Whole(kSavedFieldsMax), &piece.field) ||
        !Put(row[2].Whole(kSavedElementsMax), &piece.first) ||
        !Put(row[3].Whole(kPieceElementsMax), &piece.elements) || !Put(row[4].Hex(), &checksum))
      return false;
    to_->part.pieces.push_back(piece);
    to_->part.checksums.push_back(checksum);
    return true;
  }

  PartText* const to_;
  bool has_tensors_ = false;
  size_t data_rows_ = 0;
};

class IndexTable final : public Table {
 public:
  explicit IndexTable(IndexText* to)
      : Table({"format", "version", "checksum", "id", "sequence", "steps", "saved_at", "parts",
               "files"},
              /*values=*/7),
        to_(to) {}

 private:
  bool Value(std::string_view key, const Cell& cell) override {
    if (key == "format" || key == "version" || key == "checksum") return true;  // the seal's
    if (key == "id") return Put(cell.Hex(), &to_->id);
    if (key == "sequence") return Put(cell.Whole(kSavedBytesMax), &to_->sequence);
    if (key == "steps") return Put(cell.Whole(UINT64_MAX), &to_->steps);
    return key == "saved_at" && Put(cell.Whole(INT64_MAX), &to_->saved_at);
  }

  bool Row(std::string_view key, std::vector<Cell>& row) override {
    if (row.size() != 2) return false;
    if (key == "parts") {
      IndexText::Part part;
      to_->parts.push_back(part);
      return to_->parts.size() <= kSavedRanksMax &&
             Put(row[0].Whole(kSavedBytesMax), &to_->parts.back().bytes) &&
             Put(row[1].Hex(), &to_->parts.back().checksum);
    }
    if (key != "files" || !row[0].is_text || !IsOurs(row[0].text) || row[0].text == kIndexName)
      return false;
    to_->files.push_back({std::move(row[0].text), 0});
    return Put(row[1].Whole(kSavedBytesMax), &to_->files.back().bytes);
  }

  IndexText* const to_;
};

absl::Status Refused(const std::string& source, std::string_view what) {
  return absl::DataLossError(fmt::format("{}: {}", source, what));
}

}  // namespace

absl::StatusOr<PartText> ParsePart(std::string_view text, const std::string& source) {
  SLUICE_RETURN_IF_ERROR(CheckSeal(text, kPartFormat, source));
  PartText parsed;
  PartTable table(&parsed);
  SLUICE_RETURN_IF_ERROR(table.Parse(text, source));
  const SavedPart& part = parsed.part;
  if (table.data_rows() != kSavedFiles) return Refused(source, "it doesn't say which files it has");
  if (part.rank >= part.ranks) return Refused(source, "its rank isn't among its ranks");
  if (part.rank != 0) {
    if (table.has_tensors()) return Refused(source, "tensors are told by rank 0");
    return parsed;
  }
  const absl::Status tensors = CheckTensors(part.tensors);
  if (!tensors.ok()) return Refused(source, Message(tensors));
  if (ChecksumOf(TensorRows(part.tensors)) != parsed.tensors_checksum)
    return Refused(source, "its tensors aren't what their checksum is of");
  return parsed;
}

absl::StatusOr<IndexText> ParseIndex(std::string_view text, const std::string& source) {
  SLUICE_RETURN_IF_ERROR(CheckSeal(text, kIndexFormat, source));
  IndexText parsed;
  IndexTable table(&parsed);
  SLUICE_RETURN_IF_ERROR(table.Parse(text, source));
  if (parsed.parts.empty()) return Refused(source, "it has no parts");
  return parsed;
}

}  // namespace sluice
