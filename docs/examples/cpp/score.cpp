// Scores an image with a graph that `uadjax export MODEL_DIR --include-resize HxW` wrote.
//
//   score GRAPH.onnx IMAGE.ppm [MAP.bin]
//
// Prints {"score": ..., "label": "OK" | "review" | "NG", "threshold": ...}; MAP.bin gets the map,
// H*W floats row by row. The graph resizes: it takes the camera's pixels as they are.

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

struct Limits {
  double review = 0;
  double image = 0;
};

struct Result {
  float score = 0;
  std::vector<float> map;
};

std::string size_of(std::size_t height, std::size_t width) {
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

// Reads the next number of a PPM's header, past white space and comments; 0 if there is none.
std::size_t header_number(const std::string& bytes, std::size_t& at) {
  while (at < bytes.size() && (is_space(bytes[at]) || bytes[at] == '#')) {
    if (bytes[at] == '#') at = std::min(bytes.find('\n', at), bytes.size() - 1);
    ++at;
  }
  std::size_t number = 0;
  for (; at < bytes.size() && is_digit(bytes[at]); ++at) {
    number = 10 * number + static_cast<std::size_t>(bytes[at] - '0');
    if (number > 1'000'000) return 0;  // No camera's; and products of two cannot overflow.
  }
  return number;
}

// Reads a binary PPM: "P6", width, height, 255, one white space, and the pixels.
Image read_ppm(const std::string& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() < 3 || bytes.compare(0, 2, "P6") != 0 || !is_space(bytes[2])) {
    throw Error(path + " is no binary PPM: it does not begin with P6.");
  }
  std::size_t at = 2;
  Image image;
  image.width = header_number(bytes, at);
  image.height = header_number(bytes, at);
  const std::size_t largest = header_number(bytes, at);
  if (!image.width || !image.height || !largest || at == bytes.size() || !is_space(bytes[at])) {
    throw Error(path + " is no binary PPM: its header is damaged.");
  }
  if (largest != 255) {
    throw Error(path + " must have 8 bits per channel, its largest value 255; it is " +
                std::to_string(largest) + ".");
  }
  ++at;
  const std::size_t want = 3 * image.height * image.width;
  if (bytes.size() - at != want) {
    throw Error(path + " should have " + std::to_string(want) + " bytes of pixels for " +
                size_of(image.height, image.width) + ", and has " +
                std::to_string(bytes.size() - at) + ".");
  }
  image.pixels.assign(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end());
  return image;
}

// --- What the graph says of itself ---------------------------------------------------------------

// Reads the number at thresholds.NAME of a JSON object; what else is in it is skipped. A real
// program would use a JSON library.
double threshold(const std::string& json, const std::string& name) {
  const Error missing("The graph's metadata have no number thresholds." + name + ".");
  const std::vector<std::string> wanted = {"", "thresholds"};
  std::vector<std::string> open;  // The names of what is open: objects and lists.
  std::string last;               // The last string, which before a colon is a name.
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') {
      const std::size_t begin = ++i;
      while (i < json.size() && json[i] != '"') i += json[i] == '\\' ? 2 : 1;
      if (i >= json.size()) throw missing;
      last = json.substr(begin, i - begin);
    } else if (c == '{' || c == '[') {
      open.push_back(open.empty() ? "" : last);
    } else if (c == '}' || c == ']') {
      if (open.empty()) throw missing;
      open.pop_back();
    } else if (c == ':' && open == wanted && last == name) {
      const char* begin = json.c_str() + i + 1;
      char* end = nullptr;
      const double number = std::strtod(begin, &end);
      if (end == begin || !std::isfinite(number)) throw missing;
      return number;
    }
  }
  throw missing;
}

Limits limits_of(const ov::Model& model, const std::string& path) {
  // OpenVINO has the metadata of ONNX files there.
  const std::vector<std::string> place = {"framework", "uadjax"};
  if (!model.has_rt_info(place)) {
    throw Error(path + " is no graph of uadjax; `uadjax export MODEL_DIR` writes one.");
  }
  const auto about = model.get_rt_info<std::string>(place);
  return {threshold(about, "review"), threshold(about, "image")};
}

const char* label_of(double score, const Limits& limits) {
  if (score <= limits.review) return "OK";
  return score <= limits.image ? "review" : "NG";  // NaN, never seen to be good, is NG.
}

// --- The graph -----------------------------------------------------------------------------------

std::shared_ptr<ov::Model> read_graph(ov::Core& core, const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) throw Error(path + " is not there.");
  try {
    return core.read_model(path);
  } catch (const ov::Exception& error) {
    throw Error(path + " cannot be opened by OpenVINO: " + error.what());
  }
}

void check_size(const Image& image, const std::string& image_path, const ov::Model& model,
                const std::string& graph_path) {
  const ov::PartialShape shape = model.input("image").get_partial_shape();  // Images, H, W, RGB.
  if (shape.rank() != 4 || shape[1].is_dynamic() || shape[2].is_dynamic()) {
    throw Error(graph_path + " is no graph of uadjax: its input has another shape.");
  }
  const auto height = static_cast<std::size_t>(shape[1].get_length());
  const auto width = static_cast<std::size_t>(shape[2].get_length());
  if (height != image.height || width != image.width) {
    const std::string own = size_of(image.height, image.width);
    throw Error(image_path + " is " + own + " (height x width), but " + graph_path + " takes " +
                size_of(height, width) + "; export it with --include-resize " + own + ".");
  }
  if (!shape[0].compatible(1)) {
    throw Error(graph_path + " takes several images at once; export it with --batch 1.");
  }
}

Result run(ov::Core& core, const std::shared_ptr<ov::Model>& model, Image& image) {
  // By itself OpenVINO computes in bfloat16 on CPUs that have it, without a word, which moves
  // scores by up to a percent; the thresholds were set on float32.
  ov::CompiledModel compiled =
      core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                         ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
  ov::InferRequest request = compiled.create_infer_request();
  // A view, no copy: of 8 bits, as they are. What was compiled may score many images in turn.
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

// Every digit that tells two floats, or two doubles, apart; JSON has no NaN.
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
  const Limits limits = limits_of(*model, graph_path);
  check_size(image, image_path, *model, graph_path);
  const Result result = run(core, model, image);
  if (!map_path.empty()) write_map(map_path, result.map);
  std::cout << "{\"score\": " << to_json(result.score) << ", \"label\": \""
            << label_of(result.score, limits) << "\", \"threshold\": " << to_json(limits.image)
            << "}\n";
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
