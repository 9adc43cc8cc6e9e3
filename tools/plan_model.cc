#include "tools/plan_model.h"

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/json_file.h"
#include "tools/model_shape.h"
#include "tools/safetensors_model.h"

namespace sluice::tools {

namespace {

const std::vector<std::string> kTypes = {"fp32", "bf16", "fp16"};

// The model that the options describe, by numbers.
absl::StatusOr<HfModel> ModelOfNumbers(const PlanOptions& options) {
  ModelShape shape = options.shape;
  if (!options.params.empty()) shape.params = *ParseCount(options.params);
  SLUICE_ASSIGN_OR_RETURN(ModelSpec spec, MakeModelSpec(shape));
  return HfModel{.spec = std::move(spec), .description = ""};
}

// The model without a flag: a count or a file.
absl::Status TakeWhat(PlanOptions* options) {
  const std::string& what = options->what;
  if (ParseCount(what).ok()) {
    options->params = what;
    return absl::OkStatus();
  }
  if (what.find('.') == std::string::npos && !std::filesystem::exists(what)) {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is neither a count of parameters, like 7B, nor a file", what));
  }
  const ModelShape& shape = options->shape;
  if (shape.layers != 0 || shape.hidden != 0 || shape.vocab != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "'{}' says what the shapes are: leave out --layers, --hidden and --vocab", what));
  }
  options->model = what;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HfModel> ReadModel(PlanOptions* options) {
  if (!options->what.empty()) SLUICE_RETURN_IF_ERROR(TakeWhat(options));
  if (!options->config.empty()) {
    SLUICE_ASSIGN_OR_RETURN(const Json config, ReadJsonFile(options->config));
    SLUICE_RETURN_IF_ERROR(ApplyDsConfig(config, options->config, options));
  }
  absl::StatusOr<HfModel> model;
  std::string dtype;
  if (IsSafetensors(options->model)) {
    SLUICE_ASSIGN_OR_RETURN(const SortedJson header, ReadSafetensors(options->model));
    dtype = TypeOfSafetensors(header);
    model = ModelOfSafetensors(header, options->model);
  } else if (!options->model.empty()) {
    SLUICE_ASSIGN_OR_RETURN(const Json config, ReadJsonFile(options->model));
    dtype = TypeOfHfConfig(config);
    model = ModelOfHfConfig(config, options->model);
  } else {
    model = ModelOfNumbers(*options);
  }
  if (options->dtype.empty()) options->dtype = dtype.empty() ? "bf16" : dtype;
  return model;
}

void AddModelOptions(CLI::App* app, PlanOptions* o) {
  CLI::Option* what = app->add_option("MODEL", o->what, "7B, or a file: as --params, or --model")
                          ->type_name("COUNT|FILE");
  CLI::Option* model =
      app->add_option("--model", o->model,
                      "A config.json of Transformers, a .safetensors file or its .index.json:\n"
                      "the shapes of all parameters")
          ->type_name("FILE")
          ->excludes(what)
          ->group("Model");
  app->add_option("--params", o->params, "Parameters, like 7B, 350M or 7e9")
      ->type_name("COUNT")
      ->check([](const std::string& text) { return Complaint(ParseCount(text)); })
      ->excludes(model)
      ->excludes(what)
      ->group("Model");
  app->add_option("--layers", o->shape.layers, "Transformer blocks, or equal units (default 32)")
      ->check(CLI::PositiveNumber)
      ->excludes(model)
      ->group("Model");
  app->add_option("--hidden", o->shape.hidden, "Width of the blocks")
      ->check(CLI::PositiveNumber)
      ->excludes(model)
      ->group("Model");
  app->add_option("--vocab", o->shape.vocab,
                  "Rows of the embedding, if --params doesn't say (default 50257)")
      ->check(CLI::PositiveNumber)
      ->excludes(model)
      ->group("Model");
  app->add_option("--dtype", o->dtype,
                  "Of parameters in compute: bf16, fp16 or fp32 (default: as the files\n"
                  "say, else bf16)")
      ->type_name("TYPE")
      ->check(CLI::IsMember(kTypes))
      ->group("Model");
  app->add_option("--grad-dtype", o->grad_dtype, "Of gradients (default: as --dtype)")
      ->type_name("TYPE")
      ->check(CLI::IsMember(kTypes))
      ->group("Model");
}

}  // namespace sluice::tools
