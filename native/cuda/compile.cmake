# Runs nvcc, prints the most registers that a kernel takes and what is spilled, and keeps all of the report beside the output.
get_filename_component(here "${CMAKE_CURRENT_LIST_DIR}" ABSOLUTE)
execute_process(
  COMMAND "${NVCC}" -fatbin -std=c++17 -O3 --threads 2 "-I${here}" "-I${here}/../include" ${CODES} -Xptxas -v
    "${here}/kernels.cu" -o "${OUTPUT}"
  ERROR_VARIABLE report OUTPUT_VARIABLE report RESULT_VARIABLE bad)
if(bad)
  message(FATAL_ERROR "${report}")
endif()
file(WRITE "${REPORT}" "${report}")
set(entry)
string(REPLACE "\n" ";" lines "${report}")
foreach(line IN LISTS lines)
  if(line MATCHES "entry function '(.*)' for '(.*)'")
    set(entry "${CMAKE_MATCH_2} ${CMAKE_MATCH_1}")
  elseif(line MATCHES "([0-9]+) bytes stack frame, ([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads")
    set(spills "stack ${CMAKE_MATCH_1}, spilled ${CMAKE_MATCH_2} + ${CMAKE_MATCH_3} bytes")
  elseif(line MATCHES "Used ([0-9]+) registers")
    message("${entry}: ${CMAKE_MATCH_1} registers, ${spills}")
  endif()
endforeach()
file(SIZE "${OUTPUT}" size)
message("${size} bytes of kernels")
