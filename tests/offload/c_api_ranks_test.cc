// Several ranks over the C ABI: tables that a framework would supply, training that comes to the
// bits of plain arrays, what the report says of it, and options that make no group of ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/in_process.h"
#include "core/dlpack.h"
#include "nlohmann/json.hpp"
#include "tests/comm/table_over_group.h"
#include "tests/offload/c_api_fixture.h"
#include "tests/offload/train_reference.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kGroups = 3;
uint32_t closed = 0;  // tables

// The three tables of each rank, over groups in this process.
class Tables {
 public:
  explicit Tables(uint32_t ranks) : by_rank_(ranks), tables_(ranks) {
    static const SteadyClock clock;
    for (uint32_t g = 0; g < kGroups; ++g) {
      auto group = MakeInProcessRanks(ranks, {.timeout = std::chrono::seconds(60)}, &clock);
      SLUICE_CHECK(group.ok());
      for (uint32_t r = 0; r < ranks; ++r)
        by_rank_[r].push_back(std::make_unique<TableOverGroup>(std::move((*group)[r]), 2));
    }
    for (uint32_t r = 0; r < ranks; ++r)
      for (uint32_t g = 0; g < kGroups; ++g) tables_[r][g] = by_rank_[r][g]->table();
  }
  sluice_comm_table* of(uint32_t rank) { return tables_[rank].data(); }

 private:
  std::vector<std::vector<std::unique_ptr<TableOverGroup>>> by_rank_;
  std::vector<std::array<sluice_comm_table, kGroups>> tables_;
};

sluice_options OptionsOf(uint32_t rank, uint32_t ranks, int stage, sluice_comm_table* tables) {
  sluice_options options = DefaultOptions();
  options.param_dtype = options.grad_dtype = SLUICE_BF16;
  options.pinned_bytes = 16 << 20;
  options.lowest_param_tier = SLUICE_HBM;
  options.lowest_state_tier = SLUICE_PINNED;
  options.rank = rank;
  options.ranks = ranks;
  options.zero_stage = stage;
  options.comm = tables;
  return options;
}

// One rank, as a framework drives it.
class RankCaller {
 public:
  RankCaller(const ModelSpec& spec, const testing::TrainerOptions& training)
      : spec_(spec), training_(training) {}
  ~RankCaller() {
    if (runtime_ != 0) Check(sluice_runtime_destroy(runtime_));
  }

  void Train(const sluice_options& options) {
    Create(options);
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      std::vector<float> values = testing::InitialOf(spec_, training_, t);
      Finish([&](sluice_ticket* ticket) {
        return sluice_write(runtime_, t, SLUICE_MASTER, values.data(), SLUICE_F32,
                            spec_.tensors[t].elements, ticket);
      });
    }
    for (int step = 0; step < training_.steps; ++step) {
      for (int micro = 0; micro < training_.micro_steps; ++micro) MicroStep(step, micro);
      Step();
    }
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      std::vector<float>& values = masters.emplace_back(spec_.tensors[t].elements);
      Finish([&](sluice_ticket* ticket) {
        return sluice_read(runtime_, t, SLUICE_MASTER, values.data(), SLUICE_F32,
                           spec_.tensors[t].elements, ticket);
      });
    }
    std::vector<char> json(1 << 20);
    size_t needed = 0;
    Check(sluice_report(runtime_, json.data(), json.size(), &needed));
    ranks = nlohmann::json::parse(json.data()).at("ranks");
  }

  // Writes other values into all tensors and reads them back, waiting after each call or at the end
  // only, then returns what the units hold.
  std::vector<std::vector<float>> WriteAndRead(bool patient) {
    std::vector<std::vector<float>> written, read;
    std::vector<sluice_ticket> tickets;
    const auto begun = [&](sluice_status status, const sluice_ticket& ticket) {
      Check(status);
      if (patient) return Await(ticket);
      tickets.push_back(ticket);
    };
    for (uint32_t round = 0; round < 3; ++round) {
      for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
        std::vector<float>& values = written.emplace_back(spec_.tensors[t].elements);
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<float>((i + t * 7 + round * 3) % 64);  // which bf16 has
        sluice_ticket ticket = 0;
        begun(sluice_write(runtime_, t, round == 1 ? SLUICE_EXP_AVG : SLUICE_MASTER, values.data(),
                           SLUICE_F32, spec_.tensors[t].elements, &ticket),
              ticket);
        if ((t + round) % 3 != 0) continue;
        begun(sluice_read(runtime_, t, SLUICE_MASTER,
                          read.emplace_back(spec_.tensors[t].elements).data(), SLUICE_F32,
                          spec_.tensors[t].elements, &ticket),
              ticket);
      }
    }
    for (const sluice_ticket ticket : tickets) Await(ticket);
    std::vector<std::vector<float>> held;
    for (uint32_t u = 0; u < spec_.units.size(); ++u) Look(u, &held);
    written.erase(written.begin(), written.end() - static_cast<ptrdiff_t>(spec_.tensors.size()));
    EXPECT_EQ(written, held);
    return read;
  }

  std::vector<std::vector<float>> masters;
  nlohmann::json ranks;  // of the report

 private:
  static void Check(sluice_status status) { ASSERT_EQ(SLUICE_OK, status) << sluice_last_error(); }
  template <typename Call>
  void Finish(Call call) {
    sluice_ticket ticket = 0;
    Check(call(&ticket));
    Await(ticket);
  }
  void Await(sluice_ticket ticket) {
    sluice_status status = SLUICE_PENDING;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime_, ticket, 100);
    Check(status);
  }

  // Adds what a unit's view has, by tensor.
  void Look(uint32_t unit, std::vector<std::vector<float>>* held) {
    Acquire(unit);
    void* view = nullptr;
    Check(sluice_unit_view(runtime_, unit, &view));
    auto* const dlpack = static_cast<DlManagedTensor*>(view);
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      if (spec_.tensors[t].unit != UnitIndex(unit)) continue;
      sluice_tensor_info info{.struct_size = sizeof(info)};
      Check(sluice_tensor_query(runtime_, t, &info));
      const auto* params = static_cast<const std::byte*>(dlpack->dl_tensor.data) +
                           info.offset * SizeOf(FloatType::kBf16);
      std::vector<float>& values = held->emplace_back(info.elements);
      Convert(params, FloatType::kBf16, values.data(), FloatType::kF32, values.size());
    }
    dlpack->deleter(dlpack);
    Check(sluice_release(runtime_, unit, nullptr));
  }

  void Create(const sluice_options& options) {
    sluice_model model = 0;
    Check(sluice_model_create(&model));
    uint32_t number = 0;
    for (const ModelSpec::Unit& unit : spec_.units)
      Check(sluice_model_add_unit(model, unit.name.c_str(), &number));
    for (const ModelSpec::Tensor& tensor : spec_.tensors) {
      Check(sluice_model_add_tensor(model, tensor.unit.value(), tensor.name.c_str(),
                                    tensor.elements, tensor.group, &number));
    }
    Check(sluice_runtime_create(model, &options, &runtime_));
    Check(sluice_model_destroy(model));
  }

  void Acquire(uint32_t unit) {
    Finish([&](sluice_ticket* ticket) { return sluice_acquire(runtime_, unit, nullptr, ticket); });
  }

  void MicroStep(int step, int micro) {
    const bool boundary = micro + 1 == training_.micro_steps;
    Check(sluice_iteration_begin(runtime_, boundary ? 1 : 0,
                                 boundary ? SLUICE_ITERATION_BOUNDARY : 0));
    const auto units = static_cast<uint32_t>(spec_.units.size());
    for (uint32_t u = 0; u < units; ++u) {
      Acquire(u);
      Check(sluice_release(runtime_, u, nullptr));
    }
    for (uint32_t u = units; u > 0; --u) Backward(u - 1, step, micro);
    Check(sluice_iteration_end(runtime_));
  }

  void Backward(uint32_t unit, int step, int micro) {
    Acquire(unit);
    void* view = nullptr;
    Check(sluice_unit_view(runtime_, unit, &view));
    auto* const dlpack = static_cast<DlManagedTensor*>(view);
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      if (spec_.tensors[t].unit != UnitIndex(unit)) continue;
      sluice_tensor_info info{.struct_size = sizeof(info)};
      Check(sluice_tensor_query(runtime_, t, &info));
      const auto* params = static_cast<const std::byte*>(dlpack->dl_tensor.data) +
                           info.offset * SizeOf(FloatType::kBf16);
      const std::vector<std::byte> gradient =
          testing::MakeGradient(training_.SeedOf(training_.rank, step, micro), t, params,
                                FloatType::kBf16, FloatType::kBf16, info.elements);
      Finish([&](sluice_ticket* ticket) {
        return sluice_grad(runtime_, t, gradient.data(), info.elements, nullptr, ticket);
      });
    }
    dlpack->deleter(dlpack);
    Check(sluice_release(runtime_, unit, nullptr));
  }

  void Step() {
    std::vector<sluice_group> groups;
    for (const AdamWHyper& hyper : testing::AdamWGroups()) {
      groups.push_back({.struct_size = sizeof(sluice_group),
                        .lr = hyper.lr,
                        .beta1 = hyper.beta1,
                        .beta2 = hyper.beta2,
                        .eps = hyper.eps,
                        .weight_decay = hyper.weight_decay,
                        .l2_decay = hyper.decay_mode == WeightDecayMode::kL2,
                        .bias_correction = hyper.bias_correction});
    }
    sluice_step_args args{.struct_size = sizeof(args),
                          .groups = groups.data(),
                          .group_count = static_cast<uint32_t>(groups.size()),
                          .clip_norm = training_.clip_norm};
    Finish([&](sluice_ticket* ticket) { return sluice_step(runtime_, &args, ticket); });
  }

  const ModelSpec& spec_;
  const testing::TrainerOptions training_;
  sluice_runtime runtime_ = 0;
};

class CApiRanksTest : public CApiTest, public ::testing::WithParamInterface<int> {};

TEST_P(CApiRanksTest, TrainToTheBitsOfPlainArrays) {
  constexpr uint32_t kRanks = 2;
  const ModelSpec spec = testing::OddModel();
  testing::TrainerOptions training{.micro_steps = 2};
  training.ranks = kRanks;
  Tables tables(kRanks);
  std::vector<std::unique_ptr<RankCaller>> callers;
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < kRanks; ++r) {
    training.rank = r;
    callers.push_back(std::make_unique<RankCaller>(spec, training));
  }
  for (uint32_t r = 0; r < kRanks; ++r) {
    threads.emplace_back(
        [&, r] { callers[r]->Train(OptionsOf(r, kRanks, GetParam(), tables.of(r))); });
  }
  for (std::thread& thread : threads) thread.join();
  const auto expected = testing::TrainReference(spec, training);
  int64_t elements = 0, sent = 0, received = 0;
  for (const ModelSpec::Tensor& tensor : spec.tensors) elements += tensor.elements;
  for (uint32_t r = 0; r < kRanks; ++r) {
    EXPECT_EQ(expected, callers[r]->masters) << "rank " << r;
    const nlohmann::json& ranks = callers[r]->ranks;
    EXPECT_EQ(r, ranks.at("rank"));
    EXPECT_EQ(kRanks, ranks.at("ranks"));
    EXPECT_EQ(GetParam(), ranks.at("zero_stage"));
    EXPECT_THAT(ranks.at("communication").get<std::string>(), HasSubstr("a group in one process"));
    EXPECT_GT(ranks.at("rounds"), 0);
    for (const nlohmann::json& entry : ranks.at("traffic")) {
      if (entry.at("group") != "gradients" || entry.at("kind") != "all-to-all") continue;
      sent += entry.at("sent_bytes").get<int64_t>();
      received += entry.at("received_bytes").get<int64_t>();
    }
  }
  // In each micro-step each of two ranks sends the other what is not its own share to add up, which
  // is all of the gradients between them, and what lies between tensors.
  const int64_t least = elements * SizeOf(FloatType::kBf16) * training.steps * training.micro_steps;
  EXPECT_GE(sent, least);
  EXPECT_LE(sent, least + least / 5);
  EXPECT_EQ(sent, received);
}

// What is read needs all ranks, and so does what was written before it is computed with: each
// rank's own pace must not matter.
TEST_P(CApiRanksTest, ValuesAreWrittenAndReadWhateverEachRankWaitsFor) {
  constexpr uint32_t kRanks = 3;
  const ModelSpec spec = testing::OddModel();
  testing::TrainerOptions training{.steps = 1};
  training.ranks = kRanks;
  Tables tables(kRanks);
  std::vector<std::vector<std::vector<float>>> read(kRanks);
  std::vector<std::unique_ptr<RankCaller>> callers;  // who is ahead may not leave the others
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < kRanks; ++r) {
    training.rank = r;
    callers.push_back(std::make_unique<RankCaller>(spec, training));
  }
  for (uint32_t r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      callers[r]->Train(OptionsOf(r, kRanks, GetParam(), tables.of(r)));
      for (int time = 0; time < 3; ++time) read[r] = callers[r]->WriteAndRead((r + time) % 2 == 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(read[0], read[1]);
  EXPECT_EQ(read[0], read[2]);
}

INSTANTIATE_TEST_SUITE_P(Stages, CApiRanksTest, ::testing::Values(0, 1, 2, 3));

// What is refused, and in which words.
TEST_F(CApiTest, OptionsThatMakeNoGroupOfRanksAreRefusedByName) {
  Tables tables(2);
  std::vector<sluice_comm_table> wrong(tables.of(0), tables.of(0) + kGroups);
  sluice_options options = OptionsOf(0, 2, 1, nullptr);
  sluice_runtime runtime = 0;
  const auto refused = [&](const std::string& words) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_create(model_, &options, &runtime));
    EXPECT_THAT(Error(), HasSubstr(words));
  };
  refused("comm is NULL, but ranks is 2: give three sluice_comm_table");
  options.comm = wrong.data();
  wrong[2].rank = 1;
  refused("the table of gathers is rank 1's of 2, but rank is 0");
  wrong[2] = tables.of(0)[2];
  wrong[1].start = nullptr;
  refused("the table of gradients");
  wrong[1] = tables.of(0)[1];
  wrong[1].struct_size -= 8;
  refused("the table of gradients: struct_size is");
  wrong[0].struct_size = 8;
  refused("comm.struct_size is 8");
  options = OptionsOf(0, 2, 1, tables.of(0));
  for (const uint32_t groups : {1u, 2u, 5u, UINT32_MAX}) {
    std::vector<sluice_comm_table> unused(tables.of(0), tables.of(0) + kGroups);
    for (sluice_comm_table& table : unused) table.close = [](void*) { ++closed; };
    closed = 0;
    options.comm = unused.data();
    options.comm_groups = groups;
    refused("comm_groups is " + std::to_string(groups));
    EXPECT_EQ(kGroups, closed);  // and who waits there hears of it
  }
  options = OptionsOf(2, 2, 1, tables.of(0));
  refused("rank is 2; it must be between 0 and 1");
  options = OptionsOf(0, 2, 4, tables.of(0));
  refused("zero_stage is 4; it must be between 0 and 3");
  // And of an older caller none is read.
  options = OptionsOf(1, 2, 4, tables.of(0));
  const auto older = Shorter(options, offsetof(sluice_options, rank));
  ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, older.get(), &runtime)) << Error();
  EXPECT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime));
}

}  // namespace
}  // namespace sluice
