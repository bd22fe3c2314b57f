// Sends an image to the service: `client photo.png [http://localhost:8000]`. Requires libcurl:
//   g++ -std=c++17 -O2 -Wall -Wextra client.cpp -o client -lcurl
// Prints the response, which is JSON; parse it with a JSON library of your choice.
#include <curl/curl.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

static size_t append(char *data, size_t size, size_t count, void *text) {
  static_cast<std::string *>(text)->append(data, size * count);
  return size * count;
}

static std::string score_image(const std::string &image, const std::string &url) {
  CURL *curl = curl_easy_init();
  if (!curl) throw std::runtime_error("libcurl cannot be initialized");
  std::string response;
  const std::string route = url + "/image-anomaly-detection";
  curl_slist *headers = curl_slist_append(nullptr, "Content-Type: application/octet-stream");
  curl_easy_setopt(curl, CURLOPT_URL, route.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, image.data());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(image.size()));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, append);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &response);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
  const CURLcode code = curl_easy_perform(curl);
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  curl_slist_free_all(headers);
  curl_easy_cleanup(curl);
  if (code != CURLE_OK) throw std::runtime_error(curl_easy_strerror(code));
  if (status != 200) throw std::runtime_error(std::to_string(status) + ": " + response);
  return response;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    std::fprintf(stderr, "Usage: client IMAGE [URL]\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "Cannot read %s\n", argv[1]);
    return 1;
  }
  const std::string image{std::istreambuf_iterator<char>(file), {}};
  try {
    std::puts(score_image(image, argc > 2 ? argv[2] : "http://localhost:8000").c_str());
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
