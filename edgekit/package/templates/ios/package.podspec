Pod::Spec.new do |s|
  s.name = '@@TARGET@@'
  s.version = '1.0.0'
  s.summary = 'An image classifier made by edgekit.'
  s.homepage = 'https://localhost'
  s.license = { :type => 'see MODEL_CARD.md of the bundle' }
  s.author = 'edgekit'
  s.source = { :path => '.' }
  s.ios.deployment_target = '15.0'
  s.swift_version = '5.9'
  s.static_framework = true
  s.source_files = 'Sources/@@TARGET@@/*.swift'
  s.resource_bundles = { '@@TARGET@@' => ['Sources/@@TARGET@@/Resources/*'] }
  s.dependency 'TensorFlowLiteSwift', '@@VERSION@@'
  s.test_spec 'Tests' do |test|
    test.source_files = 'Tests/@@TARGET@@Tests/*.swift'
    test.resources = 'Tests/@@TARGET@@Tests/Resources'
  end
end
