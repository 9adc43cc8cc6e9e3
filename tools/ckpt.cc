// `sluice ckpt`: checkpoints, without a GPU and without PyTorch.

#include <array>
#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/reader.h"
#include "offload/checkpoint/summary_json.h"
#include "tools/ckpt_export.h"
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/json_file.h"

namespace sluice::tools {

namespace {

constexpr const char* kFooter =
    "\nWhat a checkpoint is, and what is promised of it: docs/checkpoints.md.\n\n"
    "Examples:\n"
    "  sluice ckpt list runs/7\n"
    "  sluice ckpt verify runs/7\n"
    "  sluice ckpt show runs/7 global_step1000 --json\n"
    "  sluice ckpt export runs/7 -o weights --dtype bf16";

struct Where {
  std::string directory;
  std::string tag;
  bool json = false;
};

std::string TimeText(int64_t saved_at) {
  const auto time = static_cast<std::time_t>(saved_at);
  std::tm parts{};
  std::array<char, 64> text{};
  if (gmtime_r(&time, &parts) == nullptr ||
      std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts) == 0)
    return "at no time that there is";
  return text.data();
}

std::string Plural(uint64_t count, std::string_view one) {
  return fmt::format("{} {}{}", count, one, count == 1 ? "" : "s");
}

std::string SizeText(uint64_t bytes) { return FormatBytes(Bytes(static_cast<int64_t>(bytes))); }

std::string SummaryText(const CheckpointSummary& summary) {
  if (!summary.status.ok())
    return fmt::format("can't be loaded: {}", Shown(Message(summary.status)));
  return fmt::format("{}, {}, of {}, saved {}", Plural(summary.steps, "step"),
                     SizeText(summary.bytes), Plural(summary.ranks, "rank"),
                     TimeText(summary.saved_at));
}

ExitCode PrintJson(const Json& json) { return Print(JsonText(json, 2) + "\n"); }

ExitCode List(const Where& where) {
  const auto found = ListCheckpoints(RealFiles(), where.directory);
  if (!found.ok()) return Fail(Message(found.status()));
  if (where.json) {
    Json list = Json::array();
    for (const CheckpointSummary& one : *found) list.push_back(SummaryObject(one));
    return PrintJson({{"checkpoints", std::move(list)}});
  }
  Page page;
  page.Section(found->empty() ? fmt::format("There is no checkpoint in {}", where.directory)
                              : fmt::format("Checkpoints in {}, the last first", where.directory));
  for (const CheckpointSummary& one : *found) page.Row(one.tag, SummaryText(one));
  return Print(page.Text());
}

ExitCode Show(const Where& where) {
  const auto opened = CheckpointReader::Open(RealFiles(), where.directory, where.tag);
  if (!opened.ok()) return Fail(Message(opened.status()));
  const CheckpointReader& reader = **opened;
  Json tensors = Json::array(), attachments = Json::array();
  std::map<std::string, std::pair<uint64_t, int64_t>> kinds;  // tensors and elements
  for (const SavedTensor& tensor : reader.tensors()) {
    if (where.json)
      tensors.push_back({{"name", tensor.name},
                         {"elements", tensor.elements},
                         {"step", tensor.step},
                         {"dtype", tensor.type.name()},
                         {"fields", tensor.fields}});
    const bool frozen = !tensor.fields.empty() && tensor.fields.front() == "param";
    auto& [count, elements] = kinds[fmt::format("{}{}", tensor.type.name(),
                                                tensor.fields.empty() ? ", left out"
                                                : frozen              ? ", frozen"
                                                                      : "")];
    ++count;
    elements += tensor.elements;
  }
  std::vector<std::string> names;
  for (const SavedPart& part : reader.parts())
    for (const SavedPart::Attachment& one : part.attachments) {
      attachments.push_back({{"rank", part.rank}, {"name", one.name}, {"bytes", one.bytes}});
      names.push_back(fmt::format("{} of rank {}, {}", one.name, part.rank, SizeText(one.bytes)));
    }
  if (where.json) {
    Json json = SummaryObject(reader.summary());
    json["path"] = reader.path();
    json["note"] = reader.note();
    json["tensors"] = std::move(tensors);
    json["attachments"] = std::move(attachments);
    return PrintJson(json);
  }
  Page page;
  page.Section(reader.path());
  page.Row("saved", TimeText(reader.summary().saved_at));
  page.Row("steps", fmt::format("{}", reader.summary().steps));
  page.Row("ranks", fmt::format("{}", reader.summary().ranks));
  page.Row("size", SizeText(reader.summary().bytes));
  for (const auto& [kind, of] : kinds)
    page.Row(kind,
             fmt::format("{}, {} elements", Plural(of.first, "tensor"), CountText(of.second)));
  if (!reader.note().empty()) page.Row("note", reader.note());
  page.List("Attached", names);
  return Print(page.Text());
}

// What `work` gives, while it is shown how far it is, and until Ctrl-C.
template <typename Work>
auto WithProgress(const std::string& what, Work work) {
  const Progress progress;
  int shown = -1;
  return work([&](uint64_t done, uint64_t all) {
    const double part =
        all == 0 ? 1 : std::min(1.0, static_cast<double>(done) / static_cast<double>(all));
    if (static_cast<int>(part * 1000) != shown) progress.Show(part, what);
    shown = static_cast<int>(part * 1000);
    return !Interrupted();
  });
}

absl::Status VerifyOne(const std::string& directory, const std::string& tag) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointReader> reader,
                          CheckpointReader::Open(RealFiles(), directory, tag));
  return WithProgress(tag, [&](const auto& heard) {
    return reader->Verify([&](uint64_t done) { return heard(done, reader->summary().bytes); });
  });
}

// One, or all that there are.
ExitCode Verify(const Where& where) {
  (void)NoteInterrupts();
  std::vector<std::string> tags = {where.tag};
  if (where.tag.empty()) {
    const auto found = ListCheckpoints(RealFiles(), where.directory);
    if (!found.ok()) return Fail(Message(found.status()));
    if (found->empty()) return Fail(fmt::format("there is no checkpoint in {}", where.directory));
    tags.clear();
    for (const CheckpointSummary& one : *found) tags.push_back(one.tag);
  }
  Page page;
  page.Section(fmt::format("Checkpoints in {}, every byte read", where.directory));
  Json list = Json::array();
  ExitCode code = kDone;
  for (const std::string& tag : tags) {
    const absl::Status status = VerifyOne(where.directory, tag);
    if (absl::IsCancelled(status)) return Fail("stopped");
    const std::string problem(Message(status));
    list.push_back({{"tag", tag}, {"problem", status.ok() ? Json() : Json(problem)}});
    page.Row(tag, status.ok() ? "whole" : problem);
    if (!status.ok()) code = kFailed;
  }
  const ExitCode printed =
      where.json ? PrintJson({{"checkpoints", std::move(list)}}) : Print(page.Text());
  return printed == kDone ? code : printed;
}

ExitCode ExportTo(const Where& where, const ExportOptions& options) {
  (void)NoteInterrupts();
  const auto opened = CheckpointReader::Open(RealFiles(), where.directory, where.tag);
  if (!opened.ok()) return Fail(Message(opened.status()));
  const auto exported = WithProgress(options.out, [&](const auto& heard) {
    return ExportCheckpoint(RealFiles(), opened->get(), options, heard);
  });
  if (!exported.ok()) return Fail(Message(exported.status()));
  if (where.json)
    return PrintJson({{"tag", (*opened)->summary().tag},
                      {"note", (*opened)->note()},
                      {"directory", options.out},
                      {"files", exported->files},
                      {"tensors", exported->tensors},
                      {"bytes", exported->bytes},
                      {"has_shapes", exported->has_shapes},
                      {"left_out", exported->left_out}});
  Page page;
  page.Section(fmt::format("{}, from {}", options.out, (*opened)->path()));
  page.Row("files", fmt::format("{}", fmt::join(exported->files, ", ")));
  page.Row("tensors", fmt::format("{}, {}", exported->tensors, SizeText(exported->bytes)));
  if (!exported->has_shapes)
    page.Row("shapes", "none: no model.json was saved, so each tensor has one dimension");
  if (!exported->left_out.empty())
    page.Row("left out",
             fmt::format("{} that the checkpoint lacks or the files can't hold, {} first",
                         Plural(exported->left_out.size(), "tensor"),
                         Shown(exported->left_out.front())));
  if (!(*opened)->note().empty()) page.Row("note", (*opened)->note());
  return Print(page.Text());
}

std::shared_ptr<Where> AddWhere(CLI::App* app, const char* tag_help) {
  auto where = std::make_shared<Where>();
  app->add_option("DIR", where->directory, "The directory of checkpoints")->required();
  if (tag_help != nullptr) app->add_option("TAG", where->tag, tag_help);
  app->add_flag("--json", where->json, "The same as JSON (docs/checkpoints.md lists the keys)");
  return where;
}

Command AddExport(CLI::App* ckpt) {
  CLI::App* const app = ckpt->add_subcommand(
      "export", "The weights as safetensors files, as Hugging Face's libraries load them");
  const auto where = AddWhere(app, "Which one; without it what `latest` names");
  struct Options {
    std::string out, dtype, shard = "5GB";
  };
  static const std::map<std::string, FloatType> kTypes = {
      {"fp32", FloatType::kF32}, {"bf16", FloatType::kBf16}, {"fp16", FloatType::kF16}};
  const auto options = std::make_shared<Options>();
  app->add_option("-o,--out", options->out, "A directory for the files, made if it isn't there")
      ->required();
  app->add_option("--dtype", options->dtype,
                  "fp32, bf16 or fp16; without it each tensor's own, as the model computes")
      ->check(CLI::IsMember(kTypes));
  app->add_option("--max-shard-size", options->shard, "Of a file, like 5GB or 512MiB")
      ->check([](const std::string& text) {
        const auto bytes = ParseBytes(text);
        return bytes.ok() && *bytes == Bytes(0) ? "a file has more than 0 bytes" : Complaint(bytes);
      })
      ->capture_default_str();
  return {.app = app, .run = [where, options] {
            ExportOptions to{.out = options->out, .shard_max = *ParseBytes(options->shard)};
            if (!options->dtype.empty()) to.type = kTypes.at(options->dtype);
            return ExportTo(*where, to);
          }};
}

}  // namespace

Command AddCkpt(CLI::App* application) {
  CLI::App* const app = application->add_subcommand(
      "ckpt", "Checkpoints: which there are, whether they are whole, and their weights for others");
  app->footer(kFooter);
  app->require_subcommand(1);
  struct Kind {
    const char* name;
    const char* about;
    const char* tag_help;  // none: it takes no tag
    ExitCode (*run)(const Where&);
  };
  static constexpr Kind kKinds[] = {
      {"list", "Which there are", nullptr, List},
      {"verify", "Reads every byte, and says whether it is what was saved",
       "Which one; without it all", Verify},
      {"show", "What is in one", "Which one; without it what `latest` names", Show}};
  std::vector<Command> commands;
  for (const Kind& kind : kKinds) {
    CLI::App* const one = app->add_subcommand(kind.name, kind.about);
    const auto where = AddWhere(one, kind.tag_help);
    commands.push_back({.app = one, .run = [where, run = kind.run] { return run(*where); }});
  }
  commands.push_back(AddExport(app));
  return {.app = app, .run = [commands] {
            for (const Command& command : commands)
              if (command.app->parsed()) return command.run();
            return kUsage;
          }};
}

}  // namespace sluice::tools
