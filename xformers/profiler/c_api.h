// The library's functions as text to text, so that any language reaches them without knowing C++.
//
//   {"function": "find_slowest", "folder": "..."}  ->  {"result": ...}  or  {"error": "one sentence"}
//
// device_limits    {}                                     -> rows
// cost             {operator, arguments: [{shapes, type, value, numbers}]} -> {flops, bytes, dtype}; null for an
// unknown one cost_rules       {}                                     -> [{name, arguments, backward, multiplies}]
// analyze          {trace: path} or {text: a trace}       -> operations, time, steps
// utilization      {forward, backward, recomputed: {dtype: flops}, seconds, limit} -> {hfu, mfu}, null without a peak
// find_slowest     {folder}                               -> {text, ...}
// report           {folder, limits}                       -> path of the page
#pragma once

extern "C" {
// UTF-8 JSON in and out. The result is the caller's, to be given to xformers_profiler_free. Never throws.
char* xformers_profiler_call(const char* request);
void xformers_profiler_free(char* result);
}
