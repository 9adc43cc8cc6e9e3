// Models to save, whose every value is a function of where it stands; saved by ranks in pieces cut
// at random, and read in other pieces.

#ifndef SLUICE_TESTS_OFFLOAD_SAVED_MODEL_H_
#define SLUICE_TESTS_OFFLOAD_SAVED_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/checkpoint/reader.h"
#include "offload/checkpoint/writer.h"

namespace sluice {

using Rng = std::mt19937_64;

inline int64_t Draw(Rng* rng, int64_t low, int64_t high) {  // both included
  return low + static_cast<int64_t>((*rng)() % static_cast<uint64_t>(high - low + 1));
}

struct SavedModel {
  uint64_t values = 0;  // of trained ones; frozen ones keep those of 0
  std::vector<SavedTensor> tensors;
  std::vector<std::vector<SavedPiece>> pieces;  // by rank
  std::string client;                           // rank 0 attaches it

  bool IsFrozen(uint32_t tensor) const {
    return tensors[tensor].fields == std::vector<std::string>{"param"};
  }

  std::byte ByteAt(uint32_t tensor, uint32_t field, int64_t byte) const {
    uint64_t x = IsFrozen(tensor) ? 0 : values;
    for (const uint64_t next : {uint64_t{tensor}, uint64_t{field}, static_cast<uint64_t>(byte)}) {
      x = (x ^ next) * 0x9E3779B97F4A7C15u;
      x ^= x >> 29;
    }
    return static_cast<std::byte>(x >> 24);
  }
  std::vector<std::byte> Bytes(uint32_t tensor, uint32_t field, int64_t first,
                               int64_t elements) const {
    const int64_t size = ElementSize(tensors[tensor], field);
    std::vector<std::byte> bytes(static_cast<size_t>(elements * size));
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = ByteAt(tensor, field, first * size + static_cast<int64_t>(i));
    return bytes;
  }
};

struct ModelSize {
  int64_t tensors_max = 9;
  int64_t elements_max = 9000;
  int64_t piece_max = 3000;
};

inline SavedTensor RandomTensor(Rng* rng, int64_t index, const ModelSize& size) {
  static constexpr const char* kNames[] = {"wte.weight", "h.0/attn", "norm \"q\"", "b\\ias",
                                           "größe"};
  SavedTensor tensor;
  tensor.name = fmt::format("{}.{}", kNames[index % 5], index);
  const int64_t odd[] = {0, 1, 7, std::min<int64_t>(4096, size.elements_max)};
  tensor.elements = Draw(rng, 0, 2) == 0 ? odd[Draw(rng, 0, 3)] : Draw(rng, 1, size.elements_max);
  tensor.step = static_cast<uint64_t>(Draw(rng, 0, 1000));
  const ElementType types[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16,
                               ElementType::Bytes()};
  tensor.type = types[Draw(rng, 0, 3)];
  static constexpr const char* kFields[] = {"master", "exp_avg", "exp_avg_sq", "more"};
  if (tensor.type.is_bytes() || Draw(rng, 0, 3) == 0) {
    tensor.fields = {"param"};
    tensor.step = 0;
  } else {
    tensor.fields.assign(kFields, kFields + Draw(rng, 0, 4));  // none: left out
  }
  return tensor;
}

// How each element goes to a rank: in runs of whole tensors' fields, cut anywhere.
inline void CutPieces(Rng* rng, int64_t ranks, const ModelSize& size, SavedModel* model) {
  model->pieces.assign(static_cast<size_t>(ranks), {});
  for (uint32_t tensor = 0; tensor < model->tensors.size(); ++tensor) {
    std::vector<int64_t> cuts = {0, model->tensors[tensor].elements};
    for (int64_t r = 1; r < ranks; ++r)
      cuts.push_back(Draw(rng, 0, model->tensors[tensor].elements));
    std::sort(cuts.begin(), cuts.end());
    for (uint32_t field = 0; field < model->tensors[tensor].fields.size(); ++field)
      for (size_t r = 0; r + 1 < cuts.size(); ++r)
        for (int64_t first = cuts[r], n; first < cuts[r + 1]; first += n) {
          n = std::min(cuts[r + 1] - first, Draw(rng, 1, size.piece_max));
          model->pieces[r].push_back({tensor, field, first, n});
        }
  }
  for (auto& pieces : model->pieces) std::shuffle(pieces.begin(), pieces.end(), *rng);
}

inline SavedModel RandomModel(Rng* rng, int64_t ranks, const ModelSize& size = {}) {
  SavedModel model;
  model.values = (*rng)();
  const int64_t count = Draw(rng, 0, size.tensors_max);
  for (int64_t i = 0; i < count; ++i) model.tensors.push_back(RandomTensor(rng, i, size));
  CutPieces(rng, ranks, size, &model);
  model.client = std::string(static_cast<size_t>(Draw(rng, 0, 200)),
                             static_cast<char>('a' + Draw(rng, 0, 25)));
  return model;
}

// Of one rank, all but the commit.
inline absl::Status SaveRank(Files* files, const CheckpointPlace& place, const SavedModel& model,
                             uint32_t rank, const std::string& frozen_from, bool* linked) {
  SavedPart part{.rank = rank,
                 .ranks = static_cast<uint32_t>(model.pieces.size()),
                 .tensors = model.tensors,
                 .pieces = model.pieces[rank]};
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointWriter> writer,
                          CheckpointWriter::Begin(files, place, std::move(part), frozen_from));
  if (linked != nullptr) *linked = writer->frozen_linked();
  const std::vector<SavedPiece>& pieces = model.pieces[rank];
  for (size_t i = pieces.size(); i-- > 0;) {
    if (writer->frozen_linked() && model.IsFrozen(pieces[i].tensor)) continue;
    SLUICE_RETURN_IF_ERROR(writer->Write(
        i, model.Bytes(pieces[i].tensor, pieces[i].field, pieces[i].first, pieces[i].elements)));
  }
  if (rank == 0)
    SLUICE_RETURN_IF_ERROR(writer->Attach("client.json", std::as_bytes(std::span(model.client))));
  return writer->Finish();
}

inline absl::Status SaveModel(Files* files, const CheckpointPlace& place, const SavedModel& model,
                              const std::string& frozen_from = "", bool* linked = nullptr,
                              bool latest = true) {
  for (uint32_t rank = 0; rank < model.pieces.size(); ++rank)
    SLUICE_RETURN_IF_ERROR(SaveRank(files, place, model, rank, frozen_from, linked));
  return CommitCheckpoint(files, place, latest);
}

// What the checkpoint and the model differ in; empty: in nothing. Errors of reading are told by
// `error`. step: elements read at a time.
inline std::string Difference(CheckpointReader* reader, const SavedModel& model, int64_t step,
                              absl::Status* error) {
  if (!std::equal(reader->tensors().begin(), reader->tensors().end(), model.tensors.begin(),
                  model.tensors.end()))
    return "tensors";
  for (uint32_t tensor = 0; tensor < model.tensors.size(); ++tensor) {
    const SavedTensor& of = model.tensors[tensor];
    for (int64_t first = 0, n; first < of.elements; first += n) {
      n = std::min(step, of.elements - first);
      for (uint32_t field = 0; field < of.fields.size(); ++field) {
        std::vector<std::byte> bytes(static_cast<size_t>(n * ElementSize(of, field)));
        *error = reader->Read(tensor, field, first, n, bytes);
        if (!error->ok()) return "";
        if (bytes != model.Bytes(tensor, field, first, n))
          return fmt::format("{}/{} from {}", of.name, of.fields[field], first);
      }
    }
  }
  const auto client = reader->Attachment(0, "client.json");
  *error = client.status();
  return client.ok() && *client != model.client ? "client.json" : "";
}

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_SAVED_MODEL_H_
