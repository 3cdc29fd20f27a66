// JSON, written from front to back.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace fastdw {

// Keys and texts are ours: plain ASCII without quotes or backslashes.
class JsonText {
 public:
  JsonText& begin_object(const char* key = nullptr) { return open(key, '{'); }
  JsonText& end_object() { return close('}'); }
  JsonText& begin_array(const char* key = nullptr) { return open(key, '['); }
  JsonText& end_array() { return close(']'); }

  JsonText& add(const char* key, const std::string& text) {
    name(key);
    text_ << '"' << text << '"';
    return *this;
  }
  JsonText& add(const char* key, const char* text) { return add(key, std::string(text)); }
  JsonText& add(const char* key, int64_t number) {
    name(key);
    text_ << number;
    return *this;
  }
  JsonText& add(const char* key, bool flag) {
    name(key);
    text_ << (flag ? "true" : "false");
    return *this;
  }
  JsonText& add(const char* key, const std::vector<int64_t>& numbers) {
    begin_array(key);
    for (const int64_t number : numbers) add(nullptr, number);
    return end_array();
  }

  std::string text() const { return text_.str(); }

 private:
  void name(const char* key) {
    text_ << separator_;
    separator_ = ",";
    if (key != nullptr) text_ << '"' << key << "\":";
  }
  JsonText& open(const char* key, char bracket) {
    name(key);
    text_ << bracket;
    separator_ = "";
    return *this;
  }
  JsonText& close(char bracket) {
    text_ << bracket;
    separator_ = ",";
    return *this;
  }

  std::ostringstream text_;
  const char* separator_ = "";
};

}  // namespace fastdw
