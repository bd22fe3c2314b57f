// Scores an image with a graph that `uadjax export MODEL_DIR --include-resize HxW` wrote.
//
//   score GRAPH.onnx IMAGE.ppm [MAP.bin]
//
// Prints {"score": ..., "label": "OK" | "review" | "NG", "image_threshold": ...} and writes the
// anomaly map to MAP.bin: H*W floats, row by row. Resizing is part of the graph, whose input is the
// image at its original size.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Error = std::runtime_error;

struct Image {
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> pixels;  // RGB, row by row.
};

struct Thresholds {
  double image_threshold = 0;
  double review_threshold = 0;
};

struct Result {
  float score = 0;
  std::vector<float> map;
};

std::string format_size(std::size_t height, std::size_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

// --- The image -----------------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (std::filesystem::is_directory(path) || !file) throw Error(path + " cannot be read.");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Reads the next number of a PPM header and advances the position; skips white space and comments.
// Returns 0 if there is no number.
std::size_t read_header_number(const std::string& bytes, std::size_t& position) {
  while (position < bytes.size() && (is_space(bytes[position]) || bytes[position] == '#')) {
    if (bytes[position] == '#') position = std::min(bytes.find('\n', position), bytes.size() - 1);
    ++position;
  }
  std::size_t number = 0;
  for (; position < bytes.size() && is_digit(bytes[position]); ++position) {
    number = 10 * number + static_cast<std::size_t>(bytes[position] - '0');
    // No camera has such a size, and below it height * width * 3 cannot overflow.
    if (number > 1'000'000) return 0;
  }
  return number;
}

// Reads a binary PPM: "P6", width, height, 255, one white space, and the pixels.
Image read_ppm(const std::string& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() < 3 || bytes.compare(0, 2, "P6") != 0 || !is_space(bytes[2])) {
    throw Error(path + " is not a binary PPM: it does not begin with P6.");
  }
  std::size_t position = 2;
  Image image;
  image.width = read_header_number(bytes, position);
  image.height = read_header_number(bytes, position);
  const std::size_t max_value = read_header_number(bytes, position);
  if (!image.width || !image.height || !max_value || position == bytes.size() ||
      !is_space(bytes[position])) {
    throw Error(path + " is not a binary PPM: its header is damaged.");
  }
  if (max_value != 255) {
    throw Error(path + " must have 8 bits per channel, with maximum value 255, not " +
                std::to_string(max_value) + ".");
  }
  ++position;
  const std::size_t expected_bytes = 3 * image.height * image.width;
  const std::size_t actual_bytes = bytes.size() - position;
  if (actual_bytes != expected_bytes) {
    throw Error(path + " should have " + std::to_string(expected_bytes) + " bytes of pixels for " +
                format_size(image.height, image.width) + ", but has " +
                std::to_string(actual_bytes) + ".");
  }
  image.pixels.assign(bytes.begin() + static_cast<std::ptrdiff_t>(position), bytes.end());
  return image;
}

// --- The metadata --------------------------------------------------------------------------------

// Reads the number at thresholds.NAME of a JSON object and skips everything else. A real program
// would use a JSON library.
double read_threshold(const std::string& json, const std::string& name) {
  const Error missing("The graph's metadata has no number thresholds." + name + ".");
  const std::vector<std::string> target = {"", "thresholds"};
  std::vector<std::string> open_names;  // Names of the objects and lists around position i.
  std::string last_string;              // Before a colon, this is the name of a field.
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') {
      const std::size_t begin = ++i;
      while (i < json.size() && json[i] != '"') i += json[i] == '\\' ? 2 : 1;
      if (i >= json.size()) throw missing;
      last_string = json.substr(begin, i - begin);
    } else if (c == '{' || c == '[') {
      open_names.push_back(open_names.empty() ? "" : last_string);
    } else if (c == '}' || c == ']') {
      if (open_names.empty()) throw missing;
      open_names.pop_back();
    } else if (c == ':' && open_names == target && last_string == name) {
      const char* begin = json.c_str() + i + 1;
      char* end = nullptr;
      const double number = std::strtod(begin, &end);
      if (end == begin || !std::isfinite(number)) throw missing;
      return number;
    }
  }
  throw missing;
}

Thresholds read_thresholds(const ov::Model& model, const std::string& path) {
  // OpenVINO stores the metadata of ONNX files under "framework".
  const std::vector<std::string> key = {"framework", "uadjax"};
  if (!model.has_rt_info(key)) {
    throw Error(path + " is not a graph exported by uadjax; write one with "
                "`uadjax export MODEL_DIR`.");
  }
  const auto metadata = model.get_rt_info<std::string>(key);
  return {read_threshold(metadata, "image_threshold"),
          read_threshold(metadata, "review_threshold")};
}

const char* label_score(double score, const Thresholds& thresholds) {
  if (score <= thresholds.review_threshold) return "OK";
  return score <= thresholds.image_threshold ? "review" : "NG";  // NaN is NG.
}

// --- The graph -----------------------------------------------------------------------------------

std::shared_ptr<ov::Model> read_graph(ov::Core& core, const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) throw Error(path + " does not exist.");
  try {
    return core.read_model(path);
  } catch (const ov::Exception& error) {
    throw Error(path + " cannot be opened by OpenVINO: " + error.what());
  }
}

void require_size(const Image& image, const std::string& image_path, const ov::Model& model,
                  const std::string& graph_path) {
  const ov::PartialShape shape = model.input("image").get_partial_shape();  // [batch, H, W, 3].
  if (shape.rank() != 4 || shape[1].is_dynamic() || shape[2].is_dynamic()) {
    throw Error(graph_path + " has a wrong input shape; export it with --include-resize.");
  }
  const auto height = static_cast<std::size_t>(shape[1].get_length());
  const auto width = static_cast<std::size_t>(shape[2].get_length());
  if (height != image.height || width != image.width) {
    const std::string image_size = format_size(image.height, image.width);
    throw Error(image_path + " is " + image_size + " (height x width), but " + graph_path +
                " requires " + format_size(height, width) + "; export it with --include-resize " +
                image_size + ".");
  }
  if (!shape[0].compatible(1)) {
    throw Error(graph_path + " requires batches of several images; export it with --batch 1.");
  }
}

Result run(ov::Core& core, const std::shared_ptr<ov::Model>& model, Image& image) {
  // On CPUs with bfloat16 OpenVINO would use it by default, which changes scores by up to 1 %; the
  // thresholds were calibrated in float32.
  ov::CompiledModel compiled =
      core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                         ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
  ov::InferRequest request = compiled.create_infer_request();
  // The tensor is a view of the 8-bit pixels, not a copy. A real program would compile once and
  // score many images.
  request.set_tensor("image", ov::Tensor(ov::element::u8, {1, image.height, image.width, 3},
                                         image.pixels.data()));
  request.infer();
  const ov::Tensor score = request.get_tensor("score");
  const ov::Tensor map = request.get_tensor("map");
  const float* values = map.data<float>();
  return {*score.data<float>(), {values, values + map.get_size()}};
}

// --- The results ---------------------------------------------------------------------------------

void write_map(const std::string& path, const std::vector<float>& map) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(map.data()),
             static_cast<std::streamsize>(map.size() * sizeof(float)));
  file.close();
  if (!file) throw Error(path + " cannot be written.");
}

// Formats a number with enough digits to read it back exactly. JSON has no NaN and no infinity.
template <class Number>
std::string to_json(Number number) {
  if (!std::isfinite(number)) return "null";
  std::ostringstream text;
  text.precision(std::numeric_limits<Number>::max_digits10);
  text << number;
  return text.str();
}

void score(const std::string& graph_path, const std::string& image_path,
           const std::string& map_path) {
  Image image = read_ppm(image_path);
  ov::Core core;
  const std::shared_ptr<ov::Model> model = read_graph(core, graph_path);
  const Thresholds thresholds = read_thresholds(*model, graph_path);
  require_size(image, image_path, *model, graph_path);
  const Result result = run(core, model, image);
  if (!map_path.empty()) write_map(map_path, result.map);
  std::cout << "{\"score\": " << to_json(result.score) << ", \"label\": \""
            << label_score(result.score, thresholds)
            << "\", \"image_threshold\": " << to_json(thresholds.image_threshold) << "}\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::cerr << "Usage: score GRAPH.onnx IMAGE.ppm [MAP.bin]\n";
    return 2;
  }
  try {
    score(argv[1], argv[2], argc == 4 ? argv[3] : "");
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
