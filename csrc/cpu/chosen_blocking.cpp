#include "csrc/cpu/chosen_blocking.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>

#include "csrc/tensor_checks.h"

namespace fastdw {
namespace {

// A number of at least `lowest` at the start of `text`, which moves on behind it.
bool take_number(const char*& text, const char* end, int64_t lowest, int64_t& number) {
  const auto [stopped, error] = std::from_chars(text, end, number);
  const bool good = error == std::errc() && number >= lowest &&
                    number <= std::numeric_limits<int32_t>::max();
  text = stopped;
  return good;
}

bool take_sign(const char*& text, const char* end, char sign) {
  return text != end && *text++ == sign;
}

ChosenBlocking parse(const std::string& text) {
  ChosenBlocking chosen{text, 0, 0, 0};
  const char *at = text.data(), *end = at + text.size();
  const bool good = take_number(at, end, 0, chosen.step) && take_sign(at, end, ':') &&
                    take_number(at, end, 1, chosen.band_rows) && take_sign(at, end, 'x') &&
                    take_number(at, end, 1, chosen.chunk_blocks) && at == end;
  FASTDW_CHECK(good, "FASTDW_BLOCKING: expected STEP:ROWSxBLOCKS as in \"13:7x4\", got \"", text,
               "\"");
  return chosen;
}

}  // namespace

std::vector<ChosenBlocking> chosen_blockings() {
  std::vector<ChosenBlocking> chosen;
  const char* set = std::getenv("FASTDW_BLOCKING");
  if (set == nullptr || *set == '\0') return chosen;
  const std::string all = set;
  for (size_t begin = 0; begin <= all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    chosen.push_back(parse(all.substr(begin, end - begin)));
    for (size_t earlier = 0; earlier + 1 < chosen.size(); ++earlier)
      FASTDW_CHECK(chosen[earlier].step != chosen.back().step, "FASTDW_BLOCKING: step ",
                   chosen.back().step, " stands twice");
    begin = end + 1;
  }
  return chosen;
}

}  // namespace fastdw
