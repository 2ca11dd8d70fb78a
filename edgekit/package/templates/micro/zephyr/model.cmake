# In the application's CMakeLists.txt, after find_package(Zephyr):
#   include(path/to/micro/zephyr/model.cmake)
get_filename_component(MODEL_DIR ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
target_include_directories(app PRIVATE ${MODEL_DIR})
target_sources(app PRIVATE
  ${MODEL_DIR}/model_data.cc
  ${MODEL_DIR}/preprocess.c
  ${MODEL_DIR}/labels.c
  ${MODEL_DIR}/golden_check.cc
  ${MODEL_DIR}/golden_data.cc
)
